"""Defines the options and arguments that several commands take, with their help."""

from pathlib import Path
from typing import Annotated, Final

import typer

from synth_client.prices import PRICED
from synth_client.training_data.filters import known_filters

RULE_HELP: Final = "The rule that judges answers: math, exact, choice, number or MODULE:FUNCTION."
FILTER_HELP: Final = f"One of {known_filters()}. Repeat it; filters apply in the order given."

RecordsPath = Annotated[
    Path,
    typer.Argument(
        metavar="RECORDS",
        help="The records, as motab synth writes them (JSONL).",
        show_default=False,
    ),
]
BaseUrls = Annotated[
    list[str], typer.Option(help="The server's address, with /v1. Repeat it for several servers.")
]
Model = Annotated[str, typer.Option(help="The model's name on the server.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar=["MOTAB_API_KEY", "OPENAI_API_KEY"],
        show_envvar=True,
        help="The server's key. Default: none is sent.",
    ),
]
Concurrency = Annotated[int, typer.Option(min=1, help="Upper bound of requests at a time.")]
MinConcurrency = Annotated[int, typer.Option(min=1, help="Lower bound of the adaptive limit.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait for one answer.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--fresh",
        help="Continue where the journal ends, or archive the old files in its folder and restart.",
    ),
]
Split = Annotated[str, typer.Option(help="The split of a dataset.")]
Subset = Annotated[
    str | None, typer.Option(help="The configuration of a dataset. Default: the dataset's own.")
]
QuestionColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The question's column; A.B is the field B of column A. Default: messages, question,"
        " problem, prompt, instruction or input.",
    ),
]
AnswerColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The reference answer's column. Default: answer, or what the row's layout gives.",
    ),
]
IdColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="The column of the rows' ids. Default: id.")
]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0, help="Sampling temperature; a pair's is the student's. Default: the server's."
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Nucleus sampling probability. Default: the server's."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Upper bound of an output's tokens. Default: the server's."),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Every sample is asked with a seed made of this number, the row's id and the sample's"
        " number. Default: the server's.",
    ),
]
Prices = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND=PRICE",
        help=f"The price of a million tokens of a kind: {', '.join(PRICED)}. Repeat it."
        " Default: no cost is shown.",
    ),
]
JudgingSeconds = Annotated[float, typer.Option(min=0.1, help="Seconds for judging one answer.")]
FilterTexts = Annotated[
    list[str] | None, typer.Option("--filter", help=f"{FILTER_HELP} Default: none.")
]
