"""The command line: arguments → verb → rendering of results and events. The only place that prints.

`main` holds the lazy group and turns errors into exit codes, `options` derives commands from the
verbs' parameters, `session` shows events, `show` has the pieces that renderings share.
"""
