"""An OpenAI-compatible server whose every answer is a run of rounds over one engine. Needs the extra `serve`."""
