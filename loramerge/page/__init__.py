"""The local page over the same verbs: `loramerge ui`.

Everything that the page does is an action: the name of a verb, and values in the words of recipes. The
engine of the command line runs it, so that the page writes what the command line writes, to the byte.

    browser ──HTTP──▶ server ──lines of JSON──▶ worker

The server checks who asks and which files are named; it never computes. A worker is a process: one
stays, for what is shown while a slider moves, and each job has one of its own.
"""
