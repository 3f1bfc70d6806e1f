"""The passes that come with surgeon, packaged and found the way a third party's are: by entry point."""
