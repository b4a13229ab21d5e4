"""The server: routes over `hub.state` and `hub.xet`, speaking the Hub's protocol."""
