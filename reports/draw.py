"""The process that ``drawing.py`` asks. It imports nothing of tare's, so that there is more room for V8."""

import json
import sys

import vl_convert

for line in sys.stdin:
    question = json.loads(line)
    answer = vl_convert.vegalite_to_svg(question["spec"])
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
