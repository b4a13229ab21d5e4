"""The hub: push and pull (`client/`), and the server that speaks the Hugging Face Hub's protocol.

    client/    push, pull: what leaves and what comes in, through huggingface_hub
    state/     what a server keeps: repositories, commits, refs, tokens (hub.db)
    xet/       write ingest of the Xet protocol: xorbs and shards in, whole files out
    server/    HTTP: routes, transfers, sign-in (extra `[server]`)

`client` stands alone; `server` uses `state` and `xet`, which do not know each other.
"""
