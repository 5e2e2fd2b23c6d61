"""The live server: a page, a WebSocket protocol, and the HTTP API of video models (extra `server`)."""
