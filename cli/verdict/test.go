package verdict

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/policy"
)

// testFile is what `policy test` reads.
type testFile struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// Manifests are files and directories of policies and workloads, relative to
	// this file.
	Manifests []string `json:"manifests"`
	// Cluster adds them to what the cluster has.
	Cluster bool `json:"cluster"`
	// Namespace is of ends that name none; "default" when empty.
	Namespace string     `json:"namespace"`
	Tests     []testCase `json:"tests"`
}

// testCase is one line of expectations: each of From with each of To.
type testCase struct {
	Name     string       `json:"name"`
	From     oneOrMore    `json:"from"`
	To       oneOrMore    `json:"to"`
	Port     scalar       `json:"port"`
	Protocol string       `json:"protocol"`
	ICMPType *uint8       `json:"icmpType"`
	Request  *testRequest `json:"request"`
	// Plain asks for a connection that is not mTLS.
	Plain  bool   `json:"plain"`
	Expect string `json:"expect"`
	// Policy and Rule are what is to decide, on either side.
	Policy string `json:"policy"`
	Rule   string `json:"rule"`
}

type testRequest struct {
	Method  string               `json:"method"`
	Path    string               `json:"path"`
	Host    string               `json:"host"`
	Headers map[string]oneOrMore `json:"headers"`
}

// oneOrMore is a list that may be written as its only entry.
type oneOrMore []string

func (o *oneOrMore) UnmarshalJSON(data []byte) error {
	var one scalar
	if len(data) > 0 && data[0] != '[' {
		err := yaml.Unmarshal(data, &one)
		*o = oneOrMore{string(one)}
		return err
	}
	var list []scalar
	err := yaml.Unmarshal(data, &list)
	*o = nil
	for _, s := range list {
		*o = append(*o, string(s))
	}
	return err
}

// scalar is text that may look like a number or a truth value.
type scalar string

func (s *scalar) UnmarshalJSON(data []byte) error {
	text := string(data)
	switch {
	case text == "null":
		text = ""
	case data[0] == '"':
		return yaml.Unmarshal(data, (*string)(s))
	case data[0] == '{' || data[0] == '[':
		return fmt.Errorf("%s is no single value", data)
	}
	*s = scalar(text)
	return nil
}

// TestReport is the result of `policy test`.
type TestReport struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Passed     int          `json:"passed"`
	Failed     int          `json:"failed"`
	Results    []TestResult `json:"results"`
}

// TestResult is one flow of one test.
type TestResult struct {
	File   string `json:"file"`
	Name   string `json:"name"`
	From   string `json:"from"`
	To     string `json:"to"`
	Flow   string `json:"flow"`
	Expect string `json:"expect"`
	Passed bool   `json:"passed"`
	// Got is allow or deny; empty when it could not be asked.
	Got string `json:"got,omitempty"`
	// By is what decided.
	By string `json:"by,omitempty"`
	// Problem is why the test failed, in one line.
	Problem string  `json:"problem,omitempty"`
	Answer  *Answer `json:"answer,omitempty"`
}

func testCommand(env *run.Env) *cobra.Command {
	var cluster bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "test FILE...",
		Short: "Hold policies to the flows that they are to allow and deny",
		Long: `Hold policies to the flows that they are to allow and deny, as FILE says: without a cluster, in CI, before anybody applies them.

A FILE lists manifests of policies and workloads, and the flows with what is expected of them; see the documentation for all
of its fields. Nothing is applied and no packet is sent.

Exit code 0 says that every test passed, 79 that some failed, 65 that a FILE can't be read.`,
		Example: `  hauberk policy test policies/tests.yaml
  hauberk policy test tests/*.yaml -o junit > report.xml
  hauberk policy test tests.yaml --from-cluster`,
		Args:        cobra.MinimumNArgs(1),
		Annotations: map[string]string{run.FormatsAnnotation: "junit"},
		RunE: func(c *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			return runTests(ctx, env, args, cluster)
		},
	}
	c.Flags().BoolVar(&cluster, "from-cluster", false, "add the manifests to what the cluster has, as cluster: true in a FILE does")
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to read the cluster")
	return c
}

func runTests(ctx context.Context, env *run.Env, files []string, cluster bool) error {
	report := TestReport{APIVersion: run.OutputVersion, Kind: "PolicyTestReport", Results: []TestResult{}}
	for _, name := range files {
		f, err := readTests(env, name)
		if err != nil {
			return err
		}
		w, err := f.load(ctx, env, name, cluster)
		if err != nil {
			return err
		}
		for i := range f.Tests {
			report.Results = append(report.Results, w.test(name, f.Namespace, &f.Tests[i])...)
		}
	}
	for _, r := range report.Results {
		if r.Passed {
			report.Passed++
		} else {
			report.Failed++
		}
	}
	if err := report.write(env); err != nil {
		return err
	}
	if report.Failed > 0 {
		return run.Told(run.ExitFindings)
	}
	return nil
}

func readTests(env *run.Env, name string) (*testFile, error) {
	const mend = "`hauberk policy test --help` and the documentation show how it is written"
	text, err := readFile(env, name)
	if err != nil {
		return nil, err
	}
	f := &testFile{}
	var head metav1.TypeMeta
	if err := yaml.Unmarshal(text, &head); err == nil && (head.APIVersion != run.OutputVersion || head.Kind != "PolicyTest") {
		return nil, run.Fail(run.ExitBadInput, "a file of tests begins with `apiVersion: "+run.OutputVersion+"` and `kind: PolicyTest`; manifests are named in it",
			"%s is %q of %q", name, head.Kind, head.APIVersion)
	}
	if err := yaml.UnmarshalStrict(text, f); err != nil {
		return nil, run.Fail(run.ExitBadInput, mend, "read %s: %w", name, err)
	}
	if len(f.Tests) == 0 {
		return nil, run.Fail(run.ExitBadInput, mend, "%s has no tests", name)
	}
	for i := range f.Tests {
		t := &f.Tests[i]
		if t.Name == "" {
			t.Name = fmt.Sprintf("tests[%d]", i)
		}
		if len(t.From) == 0 || len(t.To) == 0 {
			return nil, run.Fail(run.ExitBadInput, "say both ends: "+formsMend, "%s: %s has no from or no to", name, t.Name)
		}
		if t.Expect != "allow" && t.Expect != "deny" {
			return nil, run.Fail(run.ExitBadInput, "write `expect: allow` or `expect: deny`", "%s: %s expects %q", name, t.Name, t.Expect)
		}
	}
	if f.Namespace == "" {
		f.Namespace = "default"
	}
	return f, nil
}

// load is the world of a file of tests.
func (f *testFile) load(ctx context.Context, env *run.Env, name string, cluster bool) (*world, error) {
	from := origin{live: f.Cluster || cluster}
	for _, m := range f.Manifests {
		if !filepath.IsAbs(m) && name != "-" {
			m = filepath.Join(filepath.Dir(name), m)
		}
		from.files = append(from.files, m)
	}
	if len(from.files) == 0 && !from.live {
		return nil, run.Fail(run.ExitBadInput, "list the files of policies and workloads under `manifests`, or say `cluster: true`", "%s names nothing to test", name)
	}
	w, err := load(ctx, env, from)
	if err != nil {
		return nil, err
	}
	w.warnings(env)
	return w, nil
}

// test asks each end of from about each end of to.
func (w *world) test(file, namespace string, t *testCase) []TestResult {
	var results []TestResult
	for _, from := range t.From {
		for _, to := range t.To {
			r := TestResult{File: file, Name: t.Name, From: from, To: to, Expect: t.Expect, Flow: t.flow()}
			if a, err := w.ask(namespace, from, to, t); err != nil {
				r.Problem = err.Error()
			} else {
				r.judge(a, t)
			}
			results = append(results, r)
		}
	}
	return results
}

// flow is what the test says between its ends.
func (t *testCase) flow() string {
	parts := []string{strings.ToUpper(t.Protocol)}
	if t.Protocol == "" {
		parts[0] = "TCP"
	}
	if t.Port != "" {
		parts = append(parts, string(t.Port))
	}
	if t.Request != nil {
		parts = append(parts, t.Request.flags().method, t.Request.Path, t.Request.Host)
	}
	if t.Plain {
		parts = append(parts, "plain")
	}
	return strings.Join(strings.Fields(strings.Join(parts, " ")), " ")
}

func (r *testRequest) flags() *httpFlags {
	h := &httpFlags{method: r.Method, path: r.Path, host: r.Host}
	if h.method == "" {
		h.method = "GET"
	}
	for name, values := range r.Headers {
		for _, v := range values {
			h.headers = append(h.headers, name+"="+v)
		}
	}
	return h
}

// ask is what `policy can` does.
func (w *world) ask(namespace, from, to string, t *testCase) (*Answer, error) {
	o := &options{protocol: t.Protocol, port: string(t.Port), icmpType: 8}
	if o.protocol == "" {
		o.protocol = "tcp"
	}
	if t.ICMPType != nil {
		o.icmpType = *t.ICMPType
	}
	q := &question{noMTLS: t.Plain}
	var err error
	if q.protocol, err = parseProtocol(o.protocol); err != nil {
		return nil, err
	}
	if t.Request != nil {
		if q.protocol != policy.TCP {
			return nil, fmt.Errorf("HTTP is on TCP only")
		}
		if q.http, err = t.Request.flags().request(); err != nil {
			return nil, err
		}
	}
	if q.from, err = w.resolve(from, namespace, "", q.protocol, true); err != nil {
		return nil, err
	}
	if q.to, err = w.resolve(to, namespace, o.port, q.protocol, false); err != nil {
		return nil, err
	}
	if err := q.choosePort(o); err != nil {
		return nil, err
	}
	sameFamily(q)
	a := w.decide(q)
	w.others(q, a)
	return a, nil
}

// judge compares the answer with what is expected.
func (r *TestResult) judge(a *Answer, t *testCase) {
	r.Answer, r.Got = a, "deny"
	if a.Allowed {
		r.Got = "allow"
	}
	if a.Port != 0 && t.Port != scalar(strconv.Itoa(int(a.Port))) {
		r.Flow += fmt.Sprintf(" (port %d)", a.Port)
	}
	sides := a.deciding()
	r.By = by(sides)
	switch {
	case r.Got != t.Expect:
		r.Problem = fmt.Sprintf("want %s, got %s by %s", t.Expect, r.Got, r.By)
	case len(a.differ) > 0:
		r.Problem = fmt.Sprintf("want %s for all pods, and it is not so for %s", t.Expect, run.Some(a.differ))
	case t.Policy != "" && !anySide(sides, func(s *Side) bool { return s.of(t.Policy) }):
		r.Problem = fmt.Sprintf("want %s by %s, got it by %s", t.Expect, t.Policy, r.By)
	case t.Rule != "" && !anySide(sides, func(s *Side) bool { return s.Rule == t.Rule && (t.Policy == "" || s.of(t.Policy)) }):
		r.Problem = fmt.Sprintf("want %s by rule %s, got it by %s", t.Expect, t.Rule, r.By)
	default:
		r.Passed = true
	}
}

// deciding is the sides that the answer is from: those that deny, or both.
func (a *Answer) deciding() []*Side {
	var deny []*Side
	for _, s := range []*Side{&a.Egress, &a.Ingress} {
		if !s.allowed() {
			deny = append(deny, s)
		}
	}
	if len(deny) > 0 {
		return deny
	}
	return []*Side{&a.Egress, &a.Ingress}
}

func anySide(sides []*Side, is func(*Side) bool) bool {
	for _, s := range sides {
		if is(s) {
			return true
		}
	}
	return false
}

// by names what decided; defaults only when nothing else did.
func by(sides []*Side) string {
	var policies, others []string
	for _, s := range sides {
		switch {
		case s.Policy != "" && s.Rule != "":
			policies = append(policies, fmt.Sprintf("%s, rule %s", s.Policy, s.Rule))
		case s.Policy != "":
			policies = append(policies, s.Policy)
		case s.Tier != "":
			policies = append(policies, fmt.Sprintf("the default of tier %s (%s)", s.Tier, strings.Join(s.Selecting, ", ")))
		case s.Reason != policy.ReasonNoPod && !slices.Contains(others, s.Reason):
			others = append(others, s.Reason)
		}
	}
	switch {
	case len(policies) > 0:
		return strings.Join(policies, " and ")
	case len(others) == 0:
		return policy.ReasonNoPod
	}
	return strings.Join(others, "; ")
}

// of reports whether the policy decided, by a rule or as one of those whose
// tier denies by default.
func (s *Side) of(meant string) bool {
	return isPolicy(s.Policy, meant) || slices.ContainsFunc(s.Selecting, func(ref string) bool { return isPolicy(ref, meant) })
}

// isPolicy reports whether "Kind namespace/name" is meant by the whole, by
// namespace/name or by the name.
func isPolicy(ref, meant string) bool {
	_, name, _ := strings.Cut(ref, " ")
	return ref != "" && (meant == ref || meant == name || meant == name[strings.LastIndexByte(name, '/')+1:])
}
