"""What tests share: scripted servers, records, recorded answers."""
