"""The table of tags counts what stayed and what went."""

from train_lora.mini.tag_table import STAGES, Counts


def tags(things: str, faults: str) -> dict:
    groups = {"things": things, "places": "", "light": "red", "faults": faults}
    return {group: [{"tag": name} for name in said.split()] for group, said in groups.items()}


def test_content_that_stays_and_faults_that_go_are_counted():
    counts = Counts()
    read = (tags("dog", "rain"), tags("dog cat", ""), tags("", "rain"))
    counts.add(tags("dog tree", "rain"), dict(zip(STAGES, read)))
    assert (counts.images, counts.content, counts.faults) == (1, 2, 1)
    assert list(counts.kept.values()) == [1, 1, 0]
    assert list(counts.gone.values()) == [0, 1, 0]
