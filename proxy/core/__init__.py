"""The algorithm of MOTAB (arXiv 2605.19433): synchronous, without I/O, importing nothing of ours.

Read `monitor` first; it obeys the paper's Algorithm line by line and calls the other modules, one
for each idea: `segmenter` (steps), `scoring` (Eq. 5 and the entropy of Eq. 6), `boundary` (Eq. 6),
`credit` (Eq. 7, 8), `stitch` (Eq. 9, 10). `rounds` repeats it after a correction. `solo`, `skd` and
`drawn` are the methods that the paper compares with; the last two share `relay`. `types` holds what
goes in and out.

Indices are 0-based here and 1-based in the paper.
"""
