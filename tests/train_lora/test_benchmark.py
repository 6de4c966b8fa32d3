"""The benchmark measures every stage that a checkpoint has the components for, and leaves out the
others."""

from tests.tools import tiny
from tests.train_lora import write_photos
from train_lora import benchmark


def test_every_stage_that_can_run_is_measured(tmp_path, capsys):
    gone = dict.fromkeys(
        ("mapper", "cleaner", "unet", "vae", "text_encoder", "tokenizer", "matcher", "scheduler")
    )
    tiny.pipeline(**gone).save_pretrained(tmp_path / "pipe")
    config = benchmark.Config(
        train_data_dir=[write_photos(tmp_path / "photos")],
        pretrained_model_name_or_path=str(tmp_path / "pipe"),
        resolution=32,
        precisions=["no"],
        train_batch_size=2,
        steps=1,
        dataloader_num_workers=0,
    )
    rows = benchmark.main(config)
    assert [row[:3] for row in rows] == [
        ("detector", "no", "fresh"),
        ("detector", "no", "cached"),
        ("restorer", "no", "fresh"),
    ]
    assert all(row[3] > 0 for row in rows) and capsys.readouterr().out.count("\n") == 4
