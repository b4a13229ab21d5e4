"""The hub: what a server keeps (and, later, push, pull and the server itself).

state.py            Hub: all of the below over one store
names.py            ids of repositories, names of branches and tags
paths.py            what a path in a repository may be
limits.py           how much is taken
database.py         hub.db: connections, transactions; tables.py: its schema
repositories.py     create, move, delete, list, who sees them
contents.py         which blobs of the store were delivered to which repository
trees.py            folders as immutable rows, named by their content
operations.py       add, delete, copy: what a commit can do to a tree
commits.py          history: commits, logs, files of a revision
refs.py             branches, tags, and what a revision means
pulls.py            pull requests, refs/pr/N
tokens.py           who is asking; access.py: what they may do
"""
