"""Many nights: an index of a folder of runs, what changed in it, whose change it is, and the gate that judges a run.

``entries`` turns a run directory into rows, ``index`` keeps them, ``nights`` puts them side by side, ``changes``
decides what moved, ``findings`` says what it was and whose, ``gate`` judges the newest night.
"""
