"""What listens on the server's ports: bytes of a network in, requests through the one door, bytes out."""
