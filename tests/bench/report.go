package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// results is what a run leaves behind.
type results struct {
	Began    time.Time         `json:"began"`
	Ended    time.Time         `json:"ended"`
	Machine  string            `json:"machine"`
	Cores    int               `json:"cores"`
	Kernel   string            `json:"kernel"`
	CPU      string            `json:"cpuAccounting"`
	Versions map[string]string `json:"versions"`
	Rounds   int               `json:"rounds"`
	Duration time.Duration     `json:"durationNanos"`
	Quick    bool              `json:"quick"`
	Absent   map[string]string `json:"absent"`
	Rows     []row             `json:"rows"`
}

func newResults(b *bench, o *options) *results {
	r := &results{Began: time.Now().UTC(), Machine: cpuModel(), Cores: runtime.NumCPU(), Kernel: firstLine(readString("/proc/sys/kernel/osrelease")),
		CPU: b.starter.acct.name, Rounds: o.rounds, Duration: o.duration, Quick: o.quick, Absent: map[string]string{}, Versions: map[string]string{"go": runtime.Version()}}
	version := func(name, binary string, args ...string) {
		if binary == "" {
			return
		}
		out, err := exec.Command(binary, args...).CombinedOutput()
		if err == nil {
			r.Versions[name] = firstLine(strings.TrimSpace(string(out)))
		}
	}
	version("hauberk-proxy", b.hauberk, "version")
	version("haproxy", findBinary("haproxy"), "-v")
	version("nginx", findBinary("nginx"), "-v")
	version("envoy", b.envoy, "--version")
	return r
}

func readString(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return string(b)
}

func firstLine(s string) string { line, _, _ := strings.Cut(s, "\n"); return strings.TrimSpace(line) }

func cpuModel() string {
	for line := range strings.Lines(readString("/proc/cpuinfo")) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

func loadAverage() float64 {
	first, _, _ := strings.Cut(readString("/proc/loadavg"), " ")
	f, _ := strconv.ParseFloat(first, 64)
	return f
}

func (r *results) save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	file := filepath.Join(dir, r.Began.Format("20060102T150405Z")+".json")
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil { //nolint:gosec // results are for all to read
		return err
	}
	fmt.Fprintln(os.Stderr, "raw results:", file)
	return nil
}

// readResults reads files of the same machine as one run: the first one's
// description, all rows.
func readResults(names ...string) (*results, error) {
	var all *results
	for _, name := range names {
		r, err := readOne(name)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = r
			continue
		}
		all.Rows = append(all.Rows, r.Rows...)
	}
	return all, nil
}

func readOne(name string) (*results, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	r := &results{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

// shorten keeps the beginning and the end of an error, which may hold a log.
func shorten(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 600 {
		s = s[:200] + " … " + s[len(s)-400:]
	}
	return s
}

// brief is a row on the terminal while the run goes on.
func brief(r *row) string {
	if r.Error != "" {
		return "FAILED: " + shorten(r.Error)
	}
	var s []string
	for _, k := range []string{mRate, mP50, mP99, mCPU, mCPUPerGB, mGBps, mSustained, mPSS, mPerConn, mErrors} {
		if v, ok := r.Metrics[k]; ok {
			s = append(s, k+"="+number(v))
		}
	}
	return strings.Join(s, " ")
}

// summary is the median, least and greatest of a metric over rounds.
type summary struct {
	median, least, greatest float64
	n                       int
}

func summarise(v []float64) summary {
	if len(v) == 0 {
		return summary{}
	}
	v = slices.Sorted(slices.Values(v))
	mid := v[len(v)/2]
	if len(v)%2 == 0 {
		mid = (mid + v[len(v)/2-1]) / 2
	}
	return summary{mid, v[0], v[len(v)-1], len(v)}
}

// number has three significant digits.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

func (s summary) String() string {
	switch s.n {
	case 0:
		return "–"
	case 1:
		return number(s.median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.median), number(s.least), number(s.greatest))
}

// values are a metric of a pair in a scenario, round by round. With a base, the
// base's value of the same round is taken off.
func (r *results) values(scenario, pair, metric, base string) []float64 {
	var list []float64
	for i := range r.Rows {
		w := &r.Rows[i]
		v, ok := w.Metrics[metric]
		if w.Scenario != scenario || w.Pair != pair || !ok {
			continue
		}
		if base != "" {
			off := r.values1(scenario, base, metric, w.Round)
			if math.IsNaN(off) {
				continue
			}
			v -= off
		}
		list = append(list, v)
	}
	return list
}

func (r *results) values1(scenario, pair, metric string, round int) float64 {
	for i := range r.Rows {
		w := &r.Rows[i]
		if v, ok := w.Metrics[metric]; ok && w.Scenario == scenario && w.Pair == pair && w.Round == round {
			return v
		}
	}
	return math.NaN()
}

// column is one of a table; added ones are minus the direct run of the same
// round.
type column struct {
	metric, title string
	added         bool
}

func columnsOf(s *scenario) []column {
	if s.latency {
		return []column{{mP50, "added p50 ms", true}, {mP90, "added p90 ms", true}, {mP99, "added p99 ms", true}, {mP999, "added p99.9 ms", true},
			{mCPU, "CPU µs/request", false}, {mCores, "vCPU", false}, {mPSS, "PSS MB", false}, {mErrors, "errors", false}}
	}
	switch {
	case strings.HasPrefix(s.name, "max-"), s.name == "policy", strings.HasPrefix(s.name, "grpc-"):
		return []column{{mRate, "per second", false}, {mP50, "p50 ms", false}, {mP99, "p99 ms", false}, {mCPU, "CPU µs each", false}, {mPSS, "PSS MB", false}}
	case strings.HasPrefix(s.name, "churn-"):
		return []column{{mRate, "connections/s", false}, {mP50, "p50 ms", false}, {mP99, "p99 ms", false}, {mCPU, "CPU µs each", false}}
	case s.name == "bulk":
		return []column{{mGBps, "GB/s", false}, {mCPUPerGB, "CPU s/GB", false}, {mPSS, "PSS MB", false}}
	case s.name == "sweep":
		return []column{{mSustained, "sustained requests/s", false}}
	case s.name == "idle":
		return []column{{mPSS, "PSS MB (both)", false}}
	}
	return []column{{mConns, "connections", false}, {mPSS, "PSS MB (both)", false}, {mPerConn, "KB per connection (both)", false}}
}

// ratioMetric is what ratios are quoted of.
func ratioMetric(s *scenario) string {
	switch {
	case s.name == "bulk":
		return mCPUPerGB
	case s.name == "sweep":
		return mSustained
	case strings.HasPrefix(s.name, "idle-"):
		return mPerConn
	case s.name == "idle":
		return mPSS
	}
	return mCPU
}

// pairsIn are the pairs of a scenario in the order of allPairs, or of rules.
func (r *results) pairsIn(scenario string) []string {
	var order []string
	for _, p := range allPairs() {
		order = append(order, p.name)
	}
	for _, n := range policyRules {
		order = append(order, fmt.Sprintf("%d rules", n))
	}
	var present []string
	for _, name := range order {
		if slices.ContainsFunc(r.Rows, func(w row) bool { return w.Scenario == scenario && w.Pair == name }) {
			present = append(present, name)
		}
	}
	return present
}

func baseOf(name string) string {
	for _, p := range allPairs() {
		if p.name == name {
			return p.base
		}
	}
	return ""
}

// markdown is the report's tables.
func (r *results) markdown() string {
	var w strings.Builder
	mode := "full"
	if r.Quick {
		mode = "quick"
	}
	low, high := math.Inf(1), math.Inf(-1)
	for i := range r.Rows {
		low, high = min(low, r.Rows[i].Load), max(high, r.Rows[i].Load)
	}
	fmt.Fprintf(&w, "Run of %s UTC (%s): %d rounds in random order, %s measured each. %s, %d vCPU, Linux %s; CPU time by %s. Load average of the machine while it ran: %.1f–%.1f.\n\n",
		r.Began.Format("2006-01-02 15:04"), mode, r.Rounds, r.Duration, r.Machine, r.Cores, r.Kernel, r.CPU, low, high)
	for _, k := range sortedKeys(r.Versions) {
		fmt.Fprintf(&w, "- %s: %s\n", k, r.Versions[k])
	}
	for _, k := range sortedKeys(r.Absent) {
		fmt.Fprintf(&w, "- %s is absent: %s\n", k, r.Absent[k])
	}
	w.WriteString("\nMedians, with the least and the greatest of all rounds in parentheses. CPU is user and system time of both proxies; PSS is of both. " +
		"\"Added\" is minus the direct run of the same round.\n\n| Pair | What it does here | What it lacks beside the others |\n| --- | --- | --- |\n")
	for _, p := range allPairs() {
		if slices.ContainsFunc(r.Rows, func(w row) bool { return w.Pair == p.name }) {
			fmt.Fprintf(&w, "| %s | %s | %s |\n", p.name, p.features, p.lacks)
		}
	}
	for _, s := range allScenarios() {
		r.table(&w, &s)
	}
	if notes := r.noise(); notes != "" {
		w.WriteString("\n### How noisy\n\n" + notes)
	}
	return w.String()
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (r *results) table(w *strings.Builder, s *scenario) {
	pairs := r.pairsIn(s.name)
	if len(pairs) == 0 {
		return
	}
	columns := columnsOf(s)
	fmt.Fprintf(w, "\n### %s: %s\n\n| Pair |", s.name, s.title)
	for _, c := range columns {
		fmt.Fprintf(w, " %s |", c.title)
	}
	against := []string{"floor", "haproxy"}
	if s.name == "policy" {
		against = []string{"10 rules"}
	}
	what := map[string]string{mCPU: "CPU", mCPUPerGB: "CPU", mSustained: "rate", mPerConn: "memory", mPSS: "memory"}[ratioMetric(s)]
	for _, a := range against {
		fmt.Fprintf(w, " %s ÷ %s |", what, a)
	}
	w.WriteString("\n|" + strings.Repeat(" --- |", 1+len(columns)+len(against)) + "\n")
	for _, p := range pairs {
		fmt.Fprintf(w, "| %s |", p)
		for _, c := range columns {
			base := ""
			if c.added {
				base = baseOf(p)
			}
			cell := summarise(r.values(s.name, p, c.metric, base)).String()
			if c.added && base == "" {
				cell = "is " + cell
			}
			fmt.Fprintf(w, " %s |", cell)
		}
		for _, a := range against {
			fmt.Fprintf(w, " %s |", r.ratio(s, p, a))
		}
		w.WriteString("\n")
	}
	for _, p := range pairs {
		for i := range r.Rows {
			if x := &r.Rows[i]; x.Scenario == s.name && x.Pair == p && x.Error != "" {
				fmt.Fprintf(w, "\n%s failed in round %d: %s\n", p, x.Round+1, firstLine(x.Error))
			}
		}
	}
	for _, p := range allPairs() {
		if p.name == "hauberk" && p.cannot(s.name) != "" {
			fmt.Fprintf(w, "\nhauberk is not in this table: %s.\n", p.cannot(s.name))
		}
	}
}

// ratio is the median over rounds of the same-round quotient.
func (r *results) ratio(s *scenario, pair, of string) string {
	m := ratioMetric(s)
	var list []float64
	for round := range r.Rounds {
		a, b := r.values1(s.name, pair, m, round), r.values1(s.name, of, m, round)
		if !math.IsNaN(a) && !math.IsNaN(b) && b > 0 {
			list = append(list, a/b)
		}
	}
	if len(list) == 0 {
		return "–"
	}
	return number(summarise(list).median)
}

// noise says how far rounds of the same thing lay apart.
func (r *results) noise() string {
	var w strings.Builder
	for _, s := range allScenarios() {
		for _, p := range []string{"direct", "floor", "hauberk"} {
			for _, m := range []string{mP50, mP99, mCPU} {
				v := summarise(r.values(s.name, p, m, ""))
				if v.n < 2 || v.median == 0 || !s.latency && m != mCPU {
					continue
				}
				fmt.Fprintf(&w, "- %s, %s of %s: greatest ÷ least %s\n", s.name, strings.ReplaceAll(m, "_", " "), p, number(v.greatest/v.least))
			}
		}
	}
	return w.String()
}

const (
	generatedBegin = "<!-- generated by make bench: begin -->"
	generatedEnd   = "<!-- generated by make bench: end -->"
)

// publish prints the report and, where asked, replaces it in the page and draws.
func publish(r *results, o *options) error {
	text := r.markdown()
	fmt.Println(text)
	if o.svg != "" {
		plots, err := r.plots(o.svg)
		if err != nil {
			return err
		}
		for _, p := range plots {
			text += fmt.Sprintf("\n![%s](bench/%s)\n", strings.TrimSuffix(p, ".svg"), p)
		}
	}
	if o.docs == "" {
		return nil
	}
	page := readString(o.docs)
	before, rest, ok := strings.Cut(page, generatedBegin)
	_, after, ok2 := strings.Cut(rest, generatedEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no generated section (%s … %s)", o.docs, generatedBegin, generatedEnd)
	}
	return os.WriteFile(o.docs, []byte(before+generatedBegin+"\n"+text+generatedEnd+after), 0o644) //nolint:gosec // documentation
}
