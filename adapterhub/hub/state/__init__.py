"""What a server of the hub keeps, in hub.db of the store's home. `state.Hub` is its surface.

state.py            Hub: all of the below over one store
model.py            what it hands out: commits, refs, pages, pull requests, tokens
errors.py           with the HTTP status and the error code of each
names.py            ids of repositories, names of branches and tags
paths.py            what a path in a repository may be
limits.py           how much is taken
database.py         hub.db: connections, transactions; tables.py: its schema
repositories.py     made, moved, deleted, listed
attributes.py       the `.gitattributes` that each begins with
contents.py         which blobs of the store were delivered to which repository
objects.py          ids as git computes them
trees.py            folders as immutable rows, named by their content; edit.py: changes to them
operations.py       add, delete, copy: what a commit can do to a tree
commits.py          history: commits, logs, files of a revision
committing.py       from a request to the branch's next commit
refs.py             branches, tags, and what a revision means
pulls.py            pull requests, refs/pr/N
pruning.py          what no ref reaches any more
tokens.py           who is asking; access.py: what they may do
"""
