from cltk.cli import main

raise SystemExit(main())
