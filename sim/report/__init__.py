"""Reports: what a folder of results says, as a page, a text, a document or a picture.

material.py opens the folder, content.py is what a report consists of, run_report.py, store_report.py and
capacity_report.py say it, page.py, markdown.py and document.py write it down; write.py is the way in.
"""
