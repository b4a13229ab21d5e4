"""Write ingest of the Xet protocol, without HTTP: xorbs and shards in, whole files out.

A client cuts files into chunks, packs chunks into *xorbs* (`xorb.py`), uploads these, and then a
*shard* (`shard.py`) that says which chunk ranges of which xorbs make up each file. `xorbs.py` keeps
xorbs apart for each repository; `ingest.py` checks a shard against them and writes the files.
Formats and hashes: the Xet protocol specification in Hugging Face's Hub documentation (docs/xet).
"""
