"""What a server tells about itself: metrics, statistics and logs. Imports only `core`.

The request path only appends numbers to a list; everything else happens when the list is long or somebody looks.
"""
