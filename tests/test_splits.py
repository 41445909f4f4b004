"""What a split has, whatever its layout."""

import shutil

import pytest
from datasets import NUM_VIEWS, edit_json, refused, write_blender, write_shapenet, write_srn

from jaxmeta.data.splits import count_views


@pytest.mark.parametrize("write", [write_shapenet, write_srn, write_blender])
def test_views_are_counted_in_every_layout(tmp_path, write):
    assert count_views(write(tmp_path), "car", "train") == NUM_VIEWS


def test_the_scene_with_the_fewest_views_counts_if_it_is_asked_for(tmp_path):
    root = write_shapenet(tmp_path)  # trains on scene2 and scene0
    edit_json(root / "cars" / "scene0" / "transforms.json", lambda content: content["frames"].pop())
    assert count_views(root, "car", "train") == NUM_VIEWS - 1
    assert count_views(root, "car", "train", num_scenes=1) == NUM_VIEWS
    shutil.rmtree(root / "cars" / "scene2")
    with refused("no scene 'scene2'"):
        count_views(root, "car", "train")
