"""The contract of backends as tests that anybody runs on theirs (extra ``testing``).

``pytest --pyargs tare.bench.testing.contract --tare-backend NAME``; see ``docs/adding-a-backend.md``.
"""
