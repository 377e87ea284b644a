"""Runs one of the processes of `motab serve --workers N`; its last argument is the rule that reads
answers.
"""

import sys

from motab.answers import JudgedAnswers
from proxy.serving.worker import main

if __name__ == "__main__":
    with JudgedAnswers(sys.argv[-1]) as answers:
        main(answers)
