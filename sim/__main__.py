"""python -m sim: the command line."""

import sys

try:
    from sim.cli.main import main

    main()
except KeyboardInterrupt:  # before the command line could begin, or when it was about to end
    print("interrupted", file=sys.stderr)
    raise SystemExit(130) from None
