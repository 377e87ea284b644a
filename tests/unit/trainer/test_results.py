from dataclasses import replace

import orjson

from trainer.evaluation.pass_at_k import INTERVAL, Weighted
from trainer.evaluation.results import ProblemResult, Results, Sampling, scores_of, table_of


def problem(
    name: str, level: str | None, n: int, c: int, subject: str | None = None
) -> ProblemResult:
    return ProblemResult(name, level, subject, n, c, 0, 0, 0, 0)


def results(*problems: ProblemResult) -> Results:
    return Results(
        schema_version=1,
        motab_version="0.1.0",
        benchmark="math.jsonl",
        digest="00ff",
        model="a|b",
        served_as=("a",),
        sampling=Sampling(2, 0.6, None, 100, None, "{problem}"),
        verify="math",
        interval=INTERVAL,
        completion_tokens=12,
        table=table_of(problems, (1, 2), INTERVAL),
        scores=scores_of(problems, INTERVAL),
        problems=problems,
    )


TWO = results(problem("p", "1", 2, 1), problem("q", "2", 2, 2))
HOW = (
    "In percent; 2 samples per problem, temperature 0.6, max_tokens 100; answers judged by `math`."
    " pass@k is the unbiased estimate, in brackets its 95% interval (percentile bootstrap over"
    " problems, 2,000 resamples, seed 0).\n"
)


def test_the_table_in_markdown() -> None:
    assert TWO.to_markdown() == (
        "# a\\|b on math.jsonl\n"
        "\n"
        "| | problems | pass@1 | pass@2 |\n"
        "|---|---:|---:|---:|\n"
        "| level: 1 | 1 | 50.0 | 100.0 |\n"
        "| level: 2 | 1 | 100.0 | 100.0 |\n"
        "| all | 2 | 75.0 (50.0 to 100.0) | 100.0 (100.0 to 100.0) |\n"
        "\n" + HOW
    )


def test_what_is_missing_is_told_under_the_table() -> None:
    cut = replace(problem("p", None, 1, 0), num_failed=1, num_truncated=1)
    dead = replace(problem("q", None, 0, 0), num_unjudged=2)
    text = results(cut, dead, replace(problem("r", None, 2, 0), num_empty=2)).to_markdown()
    assert "| all | 3 | 0.0 (0.0 to 0.0), 2 of 3 problems | 0.0, 1 of 3 problems |\n" in text
    assert text.endswith(
        HOW
        + "\nOf 6 samples, 1 cut off at the length limit and 2 empty: counted as they are judged.\n"
        "\nOf 6 samples, 1 failed and 2 not judged: not counted.\n"
    )
    assert "| all | 1 | unknown | unknown |" in results(dead).to_markdown()


def test_levels_are_in_their_order_then_subjects_then_all() -> None:
    problems = [
        problem("a", "Level 10", 2, 1, "Zoology"),
        problem("b", "Level 9", 2, 1, "Algebra"),
        problem("c", None, 2, 1, "Algebra"),
    ]
    rows = table_of(problems, (1,), INTERVAL)
    assert [(row.by, row.name, row.num_problems) for row in rows] == [
        ("level", "Level 9", 1),
        ("level", "Level 10", 1),
        ("subject", "Algebra", 2),
        ("subject", "Zoology", 1),
        ("all", None, 3),
    ]


def test_the_json_has_every_field_of_the_documented_schema() -> None:
    sure = {"value": 1.0, "low": 1.0, "high": 1.0, "num_problems": 2}
    alone = {"low": None, "high": None, "num_problems": 1}
    counts = {"num_empty": 0, "num_truncated": 0, "num_unjudged": 0, "num_failed": 0}
    assert orjson.loads(TWO.to_json()) == {
        "schema_version": 1,
        "motab_version": "0.1.0",
        "benchmark": "math.jsonl",
        "digest": "00ff",
        "model": "a|b",
        "served_as": ["a"],
        "sampling": {
            "n": 2,
            "temperature": 0.6,
            "top_p": None,
            "max_tokens": 100,
            "seed": None,
            "prompt": "{problem}",
        },
        "verify": "math",
        "interval": {
            "method": "percentile bootstrap over problems",
            "level": 0.95,
            "num_resamples": 2000,
            "seed": 0,
        },
        "completion_tokens": 12,
        "table": [
            {
                "by": "level",
                "name": "1",
                "num_problems": 1,
                "pass_at_k": [{"k": 1, "value": 0.5, **alone}, {"k": 2, "value": 1.0, **alone}],
            },
            {
                "by": "level",
                "name": "2",
                "num_problems": 1,
                "pass_at_k": [{"k": 1, "value": 1.0, **alone}, {"k": 2, "value": 1.0, **alone}],
            },
            {
                "by": "all",
                "name": None,
                "num_problems": 2,
                "pass_at_k": [
                    {"k": 1, "value": 0.75, "low": 0.5, "high": 1.0, "num_problems": 2},
                    {"k": 2, **sure},
                ],
            },
        ],
        "scores": [],
        "problems": [
            {"id": "p", "level": "1", "subject": None, "n": 2, "c": 1, **counts, "scores": {}},
            {"id": "q", "level": "2", "subject": None, "n": 2, "c": 2, **counts, "scores": {}},
        ],
    }
    assert TWO.to_json() == replace(TWO).to_json()


def test_scores_are_told_in_a_table_of_their_own_and_weigh_what_their_problems_say() -> None:
    p = replace(problem("p", None, 2, 1), scores={"inst": Weighted(0.5, 3), "all": Weighted(0, 1)})
    q = replace(problem("q", None, 2, 2), scores={"inst": Weighted(1.0, 1), "all": Weighted(1, 1)})
    unjudged = problem("r", None, 0, 0)
    assert (
        "\n\n| score | problems | mean |\n"
        "|---|---:|---:|\n"
        "| inst | 2 | 62.5 (50.0 to 100.0) |\n"
        "| all | 2 | 50.0 (0.0 to 100.0) |\n\n"
    ) in results(p, q, unjudged).to_markdown()
