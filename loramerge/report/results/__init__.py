"""One file per verb whose results have a report: it defines `report(result)`.

They read the attributes of results, whose classes stand on a higher floor.
"""
