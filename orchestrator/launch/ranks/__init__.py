"""The processes of ranks on this machine."""
