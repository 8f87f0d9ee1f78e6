"""One suite on many hosts: the file of hosts, the run over them on Dask, and the folder of what comes back."""
