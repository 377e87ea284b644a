"""Distils a teacher into a student on the student's own text, with TRL, given a settings file.

It runs in an environment with TRL 1.16, under torchrun for several devices, so it imports nothing
of motab's. `SETTINGS` is the YAML that `trainer/training/trl.py` writes.
"""

import json
import sys
from pathlib import Path

import yaml
from datasets import Dataset, load_dataset
from torch.utils.data import DataLoader, Sampler
from transformers import (
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer

LOG = "trainer_log.jsonl"


class Log(TrainerCallback):  # type: ignore[misc]
    """Logs every step's loss in the format of LLaMA-Factory's log."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, float],
        **_: object,
    ) -> None:
        if not state.is_world_process_zero or "loss" not in logs:
            return
        line = {
            "current_steps": state.global_step,
            "total_steps": state.max_steps,
            "loss": logs["loss"],
        }
        with (Path(args.output_dir) / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Distiller(IWOPDTrainer):  # type: ignore[misc]
    """TRL's trainer, which continues from a checkpoint with the right next batch.

    TRL repeats a batch for every accumulated pass outside the data loader, but a resumed run skips
    the data loader's batches. When the sampler repeats the batches, they are counted.
    """

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        sampler = super()._get_train_sampler(dataset)
        sampler.repeat_count = self.args.gradient_accumulation_steps
        return sampler

    def get_train_dataloader(self) -> DataLoader:
        return super().get_train_dataloader().dataloader


def main() -> None:
    """Train, and save the student."""
    settings = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(settings["model"], truncation_side="left")
    data = load_dataset("json", data_files=settings["data"], split="train")
    trainer = Distiller(
        model=settings["model"],
        teacher_model=settings["teacher"],
        args=IWOPDConfig(**settings["arguments"]),
        train_dataset=data.select_columns(["messages"]),
        processing_class=tokenizer,
        callbacks=[Log()],
    )
    # Otherwise each loss is divided by the data's tokens instead of the generated tokens.
    trainer.model_accepts_loss_kwargs = False
    # The chat template's end of a turn, which not every model's configuration has.
    ends = trainer.generation_config.eos_token_id
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    trainer.generation_config.eos_token_id = sorted({*known, tokenizer.eos_token_id})
    trainer.train(resume_from_checkpoint=settings.get("resume_from_checkpoint"))
    trainer.save_model()


if __name__ == "__main__":
    main()
