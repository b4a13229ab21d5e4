"""Write ingest of the Xet protocol, without HTTP: xorbs and shards in, whole files out.

A client cuts files into chunks, packs chunks into *xorbs* (`xorb.py`), uploads these, and then a
*shard* (`shard.py`) that says which chunk ranges of which xorbs make up each file. `xorbs.py` keeps
xorbs apart for each repository and says what may be dropped, `stored.py` is one of them on disk,
and `ingest.py` checks a shard against them and writes the files.

    space = Xorbs(root).space(key)                 for a token: its address ends in `space.epoch`
    space = Xorbs(root).space(key, epoch)          for an upload to that address
    with space.receiving(hash) as receiving:       POST …/v1/xorbs/default/{hash}
        receiving.feed(piece)
        was_inserted = receiving.finish()
    register(store, space, body, deliver)          POST …/v1/shards

A query for known chunks is answered with 404: what a client may refer to, it knows itself.
Formats and hashes: the Xet protocol specification in Hugging Face's Hub documentation (docs/xet).
"""
