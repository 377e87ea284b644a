"""Generates a column with data-designer, previewed and in full."""

import data_designer.config as dd
from data_designer.interface import DataDesigner

from tests.clients.ways import API_KEY, BASE_URL, MODEL, WAIT, Answer, report

ROWS = 3


def builder(**inference: object) -> dd.DataDesignerConfigBuilder:
    pair = dd.ModelConfig(
        alias="pair",
        model=MODEL,
        provider="motab",
        inference_parameters=dd.ChatCompletionInferenceParams(**inference),
    )
    columns = dd.DataDesignerConfigBuilder(model_configs=[pair])
    columns.add_column(
        dd.SamplerColumnConfig(
            name="less",
            sampler_type=dd.SamplerType.CATEGORY,
            params=dd.CategorySamplerParams(values=["61", "3", "8"]),
        )
    )
    columns.add_column(
        dd.LLMTextColumnConfig(
            name="answer", model_alias="pair", prompt="What is 93 minus {{ less }}?"
        )
    )
    return columns


def main() -> None:
    provider = dd.ModelProvider(
        name="motab", endpoint=BASE_URL, provider_type="openai", api_key=API_KEY
    )
    designer = DataDesigner(artifact_path="artifacts", model_providers=[provider])
    previewed = designer.preview(builder(), num_records=ROWS).dataset
    created = designer.create(builder(), num_records=ROWS, dataset_name="sums").load_dataset()
    cut = designer.preview(builder(extra_body={"motab": WAIT}), num_records=ROWS).dataset
    assert [len(one) for one in (previewed, created, cut)] == [ROWS] * 3
    report(
        "data-designer",
        {
            "preview": Answer(previewed["answer"][0]),
            "create": Answer(created["answer"][0]),
            "`motab` params": Answer(cut["answer"][0]),
        },
    )


if __name__ == "__main__":
    main()
