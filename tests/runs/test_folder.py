import pytest

import hem.run
from hem.runs import AtomicCheckpointIO


def test_former_place_names_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match=r"hem\.run\.AtomicCheckpointIO is now hem\.runs\.checkpoints"):
        assert hem.run.AtomicCheckpointIO is AtomicCheckpointIO
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hem.run.nothing
