"""What commands say of what is wrong."""


def assert_one_sentence(said: str, complaint: str) -> None:
    lines = [line for line in said.splitlines() if line.strip()]
    assert len(lines) == 1, said
    assert "---" not in said
    assert lines[0].startswith("error: ")
    assert complaint in lines[0]
