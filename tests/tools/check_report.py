"""Looks at a page of `waybill report`: that it is well-formed, needs nothing else and can be read without a mouse or eyes, and
that its numbers are those of `waybill stats`, `diff` and `cat`, of saved placements and of metrics.jsonl, computed anew.

usage: check_report.py WAYBILL PAGE DUMP [--against B] [--metrics FILE] [--max-ranks R]
"""
import argparse
import html.parser
import json
import math
import re
import subprocess
import tempfile
import xml.etree.ElementTree as ET

SVG, HTML = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xhtml}"
parser = argparse.ArgumentParser()
for name in ("waybill", "page", "dump"):
    parser.add_argument(name)
parser.add_argument("--against")
parser.add_argument("--metrics")
parser.add_argument("--max-ranks", type=int, default=64)
args = parser.parse_args()
text = open(args.page, encoding="utf-8").read()
root = ET.fromstring(text.split("\n", 1)[1])


def run(*words):
    return subprocess.check_output([args.waybill, *words], text=True)


def near(found, wanted, what):
    """A number of the page, of 6 digits, or none."""
    if wanted is None:
        assert found is None, (what, found)
        return
    assert found is not None and math.isclose(found, wanted, rel_tol=6e-6, abs_tol=1e-12), (what, found, wanted)


def number(cell):
    return float(cell.text) if cell.text else None


def table(what):
    """The rows of a table by their heads, each a dictionary of columns; None where the page has no such table."""
    for region in root.iter(HTML + "div"):
        if region.get("aria-label") != "Table: " + what:
            continue
        columns = [c.text for c in region.iter(HTML + "th") if c.get("scope") == "col"]
        rows = [r for r in region.iter(HTML + "tr") if r.find(HTML + "td") is not None]
        assert all(len(r) == len(columns) and r[0].get("scope") == "row" for r in rows), what
        return {r[0].text: dict(zip(columns[1:], map(number, r[1:]))) for r in rows}
    return None


class Tags(html.parser.HTMLParser):
    """An HTML parser sees the elements that the XML parser sees: no element is closed by another one's end."""

    def __init__(self):
        super().__init__()
        self.open, self.n = [], 0

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.n += 1

    def handle_startendtag(self, tag, attributes):
        self.n += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())


def check_form():
    assert text.startswith("<!DOCTYPE html>\n")
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert not tags.open and tags.n == sum(1 for _ in root.iter())
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids)), "an id twice"
    for e in root.iter():
        name = e.tag.split("}")[1]
        assert name not in ("script", "link", "img", "iframe", "object", "image", "use", "base", "form"), name
        for key, value in e.items():
            assert not key.startswith("on") and key not in ("src", "srcset", "{http://www.w3.org/1999/xlink}href"), key
            assert key != "href" or (value[0] == "#" and value[1:] in ids), value
            assert key != "aria-labelledby" or all(v in ids for v in value.split()), value
    style = root.find(f"{HTML}head/{HTML}style").text
    assert "prefers-color-scheme:dark" in style and ":focus-visible" in style and "url(" not in style and "@import" not in style
    light, dark = re.findall(r":root\{(.*?)\}", style)
    variables = lambda t: set(re.findall(r"(--\w+):", t))
    assert variables(light) == variables(dark) == set(re.findall(r"var\((--\w+)\)", style)), "a colour without its dark one"
    policy = [m.get("content") for m in root.iter(HTML + "meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"], policy
    links = [a.get("href")[1:] for a in root.iter(HTML + "a")]
    assert links == [s.get("id") for s in root.iter(HTML + "section")], links


def check_drawings():
    """Each drawing has a name, a description and a stop of the keyboard, and lies on its canvas."""
    for svg in root.iter(SVG + "svg"):
        assert svg[0].tag == SVG + "title" and svg[1].tag == SVG + "desc" and svg[0].text and svg[1].text
        assert svg.get("tabindex") == "0" or all(g.get("tabindex") == "0" and g.get("aria-label") for g in svg.iter(SVG + "g"))
        width, height = map(float, svg.get("viewBox").split()[2:])
        for e in svg.iter():
            for key, limit in (("x", width), ("x1", width), ("x2", width), ("cx", width), ("y", height), ("y1", height),
                               ("y2", height), ("cy", height)):
                assert e.get(key) is None or 0 <= float(e.get(key)) <= limit, (svg.get("id"), e.attrib)
        if svg.get("id") == "heat":
            continue
        values = [v for row in table(svg[0].text).values() for v in row.values() if v is not None]
        dots = [float(c[0].text.rsplit(": ", 1)[1]) for c in svg.iter(SVG + "circle")]
        # Of many points only those that no line reaches have a dot.
        assert sorted(dots) == sorted(values) or (len(table(svg[0].text)) > 200 and set(dots) <= set(values)), svg.get("id")
        check_heights(svg)
    for region in root.iter(HTML + "div"):
        assert region.get("tabindex") == "0" and region.get("role") == "region"


def check_heights(svg):
    """The dots stand on one scale: height is linear in value, and more is higher."""
    dots = [(float(c[0].text.rsplit(": ", 1)[1]), float(c.get("cy"))) for c in svg.iter(SVG + "circle")]
    if not dots or min(dots)[0] == max(dots)[0]:
        return
    (v0, y0), (v1, y1) = min(dots), max(dots)
    assert y1 < y0, svg.get("id")
    for v, y in dots:
        assert abs(y - (y0 + (v - v0) / (v1 - v0) * (y1 - y0))) < 0.3, (svg.get("id"), v, y)


def check_load():
    stats = json.loads(run("stats", "--json", args.dump))
    figures, counts = table("figures of each layer"), table("choices of each expert")
    heat = {}
    for cell in root.iter(SVG + "rect"):
        if len(cell):
            layer, expert, n = map(int, re.fullmatch(r"layer (\d+), expert (\d+): (\d+)", cell[0].text).groups())
            heat[layer, expert] = n, int(cell.get("class")[-1])
    assert len(figures) == len(counts) == len(stats["layers"])
    for layer in stats["layers"]:
        found, c = figures[str(layer["layer"])], layer["counts"]
        for key, column in (("max_over_mean", "max over mean"), ("entropy", "entropy"), ("top_expert", "top expert"),
                            ("top_share", "share of top"), ("unused", "never chosen"), ("repeats", "repeats")):
            near(found[column], layer[key], (layer["layer"], key))
        step = (len(c) + 511) // 512
        wanted = [max(c[e:e + step]) for e in range(0, len(c), step)]
        assert list(counts[str(layer["layer"])].values()) == wanted
        cells = [(e, *v) for (l, e), v in sorted(heat.items()) if l == layer["layer"]]
        assert [n for _, n, _ in cells] == wanted and all(c[e] == n for e, n, _ in cells)
        for _, n, colour in cells:
            over_mean = 4 * n * len(c)
            assert colour == (sum(over_mean >= q * sum(c) for q in (1, 2, 4, 8, 16)) + 1 if n else 0), (n, colour)
    return stats


def check_balance(stats):
    """No solver: what `stats --ranks` says. Solvers: what replicas that share evenly make of the counts in the saved map."""
    found, E = table("Balancedness over ranks"), len(stats["layers"][0]["counts"])
    ranks = [2**i for i in range(1, 11) if 2**i <= min(E, args.max_ranks)]
    assert [int(r) for r in found or {}] == (ranks if stats["valid_rows"] else [])
    for R in ranks if found else []:
        layers = json.loads(run("stats", "--json", f"--ranks={R}", args.dump))["layers"]
        near(found[str(R)]["no solver"], sum(l["balancedness"] for l in layers) / len(layers), (R, "no solver"))
        slots = (E + R - 1) // R + 1
        for solver in ("deepseek", "balanced", "incremental"):
            with tempfile.TemporaryDirectory() as folder:
                path = folder + "/map.json"
                done = subprocess.run([args.waybill, "eplb", "--ranks", str(R), "--slots", str(R * slots), "--algorithm", solver,
                                       "--step-records", "1000000000", "--save", path, args.dump], capture_output=True)
                if done.returncode:
                    assert found[str(R)][solver] is None, (R, solver, done.stderr)
                    continue
                maps = json.load(open(path))["physical_to_logical_map"]
            total = 0
            for layer, experts in zip(layers, maps):
                loads = [sum(layer["counts"][e] / experts.count(e) for e in experts[r * slots:(r + 1) * slots] if e >= 0)
                         for r in range(R)]
                total += sum(loads) / R / max(loads)
            near(found[str(R)][solver], total / len(maps), (R, solver))


def check_mismatch():
    layers, positions = table("Mismatch by layer"), table("Mismatch by position")
    if not args.against:
        assert layers is positions is None
        return
    diff = json.loads(run("diff", "--json", args.dump, args.against))
    wanted = [(layers, str(l["layer"]), l) for l in diff["layers"]]
    wanted += [(positions, f"{p['from']}..{p['to'] - 1}", p) for p in diff["positions"]]
    if diff["rows"] == 0:
        assert layers is positions is None
        return
    assert len(layers) == len(diff["layers"]) and len(positions) == len(diff["positions"])
    for found, row, sums in wanted:
        for column, key in (("overlap@K", "overlap"), ("same experts", "same"), ("same order", "exact")):
            near(found[row][column], sums[key], (row, key))
    assert f"{diff['rows']} in both" in text


def check_indexers(stats):
    found, of_stats = table("choices of each indexer"), stats.get("indexers", {"records": 0})
    assert (found is not None) == (of_stats["records"] > 0)
    if found is None:
        return
    layers = json.loads(run("diff", "--json", args.dump, args.against))["indexers"]["layers"] if args.against else []
    assert list(found) == [str(i["layer"]) for i in of_stats["layers"]]
    for i in of_stats["layers"]:
        for column, key in (("rows", "rows"), ("of none", "empty"), ("listed", "mean_listed"), ("span", "mean_span")):
            near(found[str(i["layer"])][column], i[key], (i["layer"], key))
    for i in layers:
        near(found[str(i["layer"])]["overlap@K"], i["overlap"], "overlap of an indexer")
        near(found[str(i["layer"])]["same positions"], i["same"], "same positions of an indexer")


def check_drift(stats):
    """Counts by the version that a record was finished under, from its rows."""
    versions, K = {}, None
    for line in run("cat", "--json", args.dump).splitlines():
        record = json.loads(line)
        rows = [row for part in record["routes"] for row in part["rows"] if row]
        if not rows:
            continue
        version = record["spans"][-1][2] if record.get("spans") else None
        sizes, counts = versions.setdefault(version, ([0, 0], [[0] * len(l["counts"]) for l in stats["layers"]]))
        sizes[0] += 1
        sizes[1] += len(rows)
        K = len(rows[0][0])
        for row in rows:
            for l, ids in enumerate(row):
                for e in ids:
                    counts[l][e] += 1
    overlaps, tops, sizes = (table(t) for t in ("Overlap of load", "Share of load that the K top experts of a layer have",
                                                "records and rows of each"))
    if None in versions:
        return  # by file, which `cat` does not name
    if len(versions) < 2:
        assert overlaps is tops is sizes is None
        return
    order = sorted(versions)
    assert list(overlaps) == list(tops) == list(sizes) == [str(v) for v in order], (list(overlaps), order)
    share = lambda c: [n / sum(c) for n in c]
    overlap = lambda a, b: [sum(map(min, share(x), share(y))) for x, y in zip(a, b)]
    top = lambda c: sorted(range(len(c)), key=lambda e: (-c[e], e))[:K]
    mean = lambda values: sum(values) / len(values)
    first = versions[order[0]][1]
    for before, v in zip([None] + order, order):
        (records, rows), counts = versions[v]
        assert sizes[str(v)] == {"records": records, "valid rows": rows}, (v, sizes[str(v)])
        found = overlaps[str(v)]
        near(found["with the first"], mean(overlap(counts, first)), "first")
        near(tops[str(v)]["its own top K"], mean([sum(share(c)[e] for e in top(c)) for c in counts]), "top")
        near(tops[str(v)]["the first one's top K"], mean([sum(share(c)[e] for e in top(f)) for c, f in zip(counts, first)]), "top")
        if before is None:
            assert found["with the one before"] is found["worst layer"] is None
        else:
            both = overlap(counts, versions[before][1])
            near(found["with the one before"], mean(both), "before")
            near(found["worst layer"], min(both), "worst")


def check_metrics():
    names = {"Reward": {"mean": "reward", "standard deviation": "reward_std"},
             "KL in nats, rollout to trainer and to the reference":
                 {"k1": "fidelity.kl_k1", "k3": "fidelity.kl_k3", "k3, replay off": "fidelity_replay_off.kl_k3",
                  "to the reference": "kl_reference"},
             "Share of rows that the trainer routed differently":
                 {"first forward": "fidelity.routed_differently", "replay off": "fidelity_replay_off.routed_differently"}}
    lines = [json.loads(l) for l in open(args.metrics)] if args.metrics else []
    for title, columns in names.items():
        found, values = table(title), {}
        for line in lines:
            for column, path in columns.items():
                value = line
                for key in path.split("."):
                    value = (value or {}).get(key)
                values[str(line["step"]), column] = value
        if all(v is None for v in values.values()):
            assert found is None, title
            continue
        assert list(found) == [str(l["step"]) for l in lines], title
        for (step, column), value in values.items():
            if value is None:
                assert found[step].get(column) is None, (title, step, column)
            else:
                near(found[step][column], value, (title, step, column))


check_form()
check_drawings()
found_stats = check_load()
check_balance(found_stats)
check_mismatch()
check_indexers(found_stats)
check_drift(found_stats)
check_metrics()
