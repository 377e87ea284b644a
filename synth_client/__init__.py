"""motab's client: asks the proxy over HTTP, stores the answers as records, and shows them."""
