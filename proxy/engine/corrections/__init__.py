"""Has the answers of several corrections read, and says where corrections may be asked for."""
