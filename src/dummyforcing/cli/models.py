"""`dummyforcing models`: what there is to make videos with."""


def models() -> None:
    """List the models: those that come along, and the public ones with their licences."""
    from dummyforcing.cli.report import print_models

    print_models()
