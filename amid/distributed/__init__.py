"""One run on several devices: a process for each, what the processes say to each other, and their start.

A process of a run is called a rank. All ranks run the same code on the same settings. Only the first one
writes files and prints.
"""
