"""motab's client: asks the proxy over HTTP, keeps what comes back as records, and shows them."""
