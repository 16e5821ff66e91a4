"""What names a protocol as it was called before is told the name that it has now."""

import json

OLD, NEW = "detection/torchvision-fpn-v1", "detection/small-mask-rcnn-torchvision-v1"


def test_a_study(cli, tmp_path):
    (tmp_path / "old.yaml").write_text(
        "title: Old\ndescription: Old.\nimage_set: digit-scenes\nrecipes: digit-scenes\n"
        f"methods: [random_init]\nprotocols: [{OLD}]\nlimit: {{train: 32, val: 32, test: 32}}\n"
    )
    outcome = cli("run", "old.yaml")
    assert outcome.code == 2
    assert f"{OLD} is called {NEW} now" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_stored_record(cli, tmp_path):
    study = "limit: {train: 64, val: 32, test: 32}\noverrides: {backbone.width: 8}\n"
    (tmp_path / "new.yaml").write_text(
        "title: New\ndescription: New.\nimage_set: digit-scenes\nrecipes: digit-scenes\n"
        f"methods: [random_init]\nprotocols: [knn/cosine-v1]\n{study}"
    )
    assert cli("run", "new.yaml").code == 0
    (record,) = (tmp_path / "runs").glob("*/records/*.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "protocol": OLD}))
    outcome = cli("report", "runs", "--out", "out")
    assert outcome.code == 2
    assert f"{OLD} is called {NEW} now" in outcome.err
    assert str(record.relative_to(tmp_path)) in outcome.err
    record.write_text(json.dumps({**json.loads(record.read_text()), "protocol": NEW}))
    assert cli("report", "runs", "--out", "out").code == 0
    assert (tmp_path / "out" / "tables" / "detection-small-mask-rcnn-torchvision-v1.md").is_file()
