"""guest: what runs inside the sandbox, before and around the untrusted code.

Here: standard library only and relative imports only, because this folder is mounted alone, under another name, into a
root that has nothing else of posttrain. Not here: anything of the host's side (``sandbox.worker``).
"""
