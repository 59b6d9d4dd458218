"""One worker process of the gateway: the hot path from a client's bytes to an upstream's and back.

``server`` HTTP in, ``upstream`` HTTP out, ``exchange`` one request from acceptance to its row, ``events`` the one
stream that every answer's text goes through, ``shadow`` copies, ``worker`` the whole, ``link`` its tie to control.
Needs ``pip install 'posttrain[serve]'``; nothing of it is loaded by importing this package.
"""
