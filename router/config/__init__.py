"""Config text to frozen, validated values: what the gateway's file and the simulator's pool file have in common.

Must not depend on the gateway or the simulator; both read their files with it.
"""
