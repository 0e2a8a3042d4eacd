// Command cyclonus runs the NetworkPolicy conformance cases of
// github.com/mattfenwick/cyclonus against the current cluster, as `cyclonus
// generate` does, with batched probes. It owns the choice of cases and the
// report; the cases, what is expected of each, and the comparison are cyclonus'
// own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mattfenwick/cyclonus/pkg/connectivity"
	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/kube"
	"github.com/sirupsen/logrus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
)

// grid is what cyclonus' cases are written for: three namespaces of three pods.
var (
	namespaces = []string{"x", "y", "z"}
	pods       = []string{"a", "b", "c"}
	ports      = []int{80, 81}
	protocols  = []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP}
)

type options struct {
	wait, retries int
	mode          string
	cases         string
	exclude       string
	report, lock  string
	record        string
	list, keep    bool
	loopback      bool
}

func main() {
	var o options
	flag.IntVar(&o.wait, "wait", 1, "seconds that a change may take until it holds")
	flag.IntVar(&o.retries, "retries", 0, "further probes after one that differs from what is expected")
	flag.StringVar(&o.mode, "mode", "", "how pods are addressed: "+strings.Join(generator.AllProbeModes, ", ")+"; empty is as each case has it")
	flag.StringVar(&o.cases, "cases", "", "numbers of cases, such as 1-20,33; empty is all")
	flag.StringVar(&o.exclude, "exclude", "", "leave out the cases with any of these tags")
	flag.StringVar(&o.report, "report", "", "file to write one JSON line a case to")
	flag.StringVar(&o.lock, "lock", "", "file to lock, shared, during each case, for a cluster that others change under an exclusive lock")
	flag.BoolVar(&o.list, "list", false, "print the cases and end")
	flag.StringVar(&o.record, "record", "", "write what each step of each case holds and expects to this file, and end")
	flag.BoolVar(&o.keep, "keep", false, "keep the namespaces x, y and z")
	flag.BoolVar(&o.loopback, "loopback", false, "compare a pod's connections to itself too, which cyclonus polices and Kubernetes does not")
	flag.Parse()
	logrus.SetLevel(logrus.WarnLevel)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "cyclonus:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	var excluded []string
	if o.exclude != "" {
		excluded = strings.Split(o.exclude, ",")
	}
	if err := generator.ValidateTags(excluded); err != nil {
		return err
	}
	chosen, err := ranges(o.cases)
	if err != nil {
		return err
	}
	if o.list {
		for i, c := range generator.NewTestCaseGenerator(true, "192.0.2.1", namespaces, nil, excluded).GenerateTestCases() {
			fmt.Printf("%3d %s [%s]\n", i+1, c.Description, strings.Join(c.Tags.Keys(), " "))
		}
		return nil
	}
	if o.record != "" {
		f, err := os.Create(o.record)
		if err != nil {
			return err
		}
		return errors.Join(record(f), f.Close())
	}
	report := io.WriteCloser(discard{})
	if o.report != "" {
		if report, err = os.Create(o.report); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, report.Close()) }()

	client, err := kube.NewKubernetesForContext("")
	if err != nil {
		return err
	}
	// A case takes some fifty requests, which client-go's default of 5 a second
	// would make most of its time.
	client.RestConfig.QPS, client.RestConfig.Burst = 200, 200
	if client.ClientSet, err = kubernetes.NewForConfig(client.RestConfig); err != nil {
		return err
	}
	unlock, err := shared(o.lock)
	if err != nil {
		return err
	}
	resources, err := probe.NewDefaultResources(client, namespaces, pods, ports, protocols, nil, 120, true, "")
	unlock()
	if err != nil {
		return fmt.Errorf("set up the pods: %w", err)
	}
	if !o.keep {
		defer func() {
			for _, n := range namespaces {
				err = errors.Join(err, client.DeleteNamespace(n))
			}
		}()
	}
	one, err := resources.GetPod("z", "c")
	if err != nil {
		return err
	}
	cases := generator.NewTestCaseGenerator(true, one.IP, namespaces, nil, excluded).GenerateTestCases()
	if o.mode != "" {
		mode, err := generator.ParseProbeMode(o.mode)
		if err != nil {
			return err
		}
		for _, c := range cases {
			for _, s := range c.Steps {
				s.Probe.Mode = mode
			}
		}
	}
	r := runner{
		interpreter: connectivity.NewInterpreter(client, resources, &connectivity.InterpreterConfig{
			ResetClusterBeforeTestCase: true, VerifyClusterStateBeforeTestCase: true, BatchJobs: true,
			KubeProbeRetries: o.retries, PerturbationWaitSeconds: o.wait, IgnoreLoopback: !o.loopback,
		}),
		printer:        connectivity.Printer{IgnoreLoopback: !o.loopback},
		lock:           o.lock,
		ignoreLoopback: !o.loopback,
	}
	return r.all(ctx, cases, chosen, json.NewEncoder(report))
}

// runner runs cases one after another.
type runner struct {
	interpreter    *connectivity.Interpreter
	printer        connectivity.Printer
	lock           string
	ignoreLoopback bool
}

// outcome is a case's line of the report.
type outcome struct {
	Number      int
	Description string
	Tags        []string
	Steps       int
	Passed      bool
	Error       string `json:",omitempty"`
	// Connections as expected, otherwise, and not compared.
	Same, Differs, Ignored int
	Seconds                float64
}

func (r *runner) all(ctx context.Context, cases []*generator.TestCase, chosen func(int) bool, report *json.Encoder) error {
	start := time.Now()
	var failed []string
	ran, same, differs, ignored := 0, 0, 0, 0
	for i, c := range cases {
		if !chosen(i + 1) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("interrupted after %d cases: %w", ran, err)
		}
		o, err := r.one(i+1, c)
		if err != nil {
			return err
		}
		ran, same, differs, ignored = ran+1, same+o.Same, differs+o.Differs, ignored+o.Ignored
		if err := report.Encode(o); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		word := "pass"
		if !o.Passed {
			word, failed = "FAIL", append(failed, strconv.Itoa(o.Number))
		}
		fmt.Printf("%s %3d/%d %5.1f s, %d of %d connections as expected: %s %s\n",
			word, o.Number, len(cases), o.Seconds, o.Same, o.Same+o.Differs, o.Description, o.Error)
	}
	fmt.Printf("cyclonus: %d cases, %d passed, %d failed; %d connections, %d not as expected, %d of pods to themselves ignored; %v\n",
		ran, ran-len(failed), len(failed), same+differs, differs, ignored, time.Since(start).Round(time.Second))
	if len(failed) > 0 {
		return fmt.Errorf("failed cases: %s (run them again with -cases %[1]s)", strings.Join(failed, ","))
	}
	if ran == 0 {
		return errors.New("no case was chosen")
	}
	return nil
}

// attempts is how often a case is begun anew when a write to the API failed, for
// cyclonus does not repeat one that met a concurrent change of the object.
const attempts = 3

func (r *runner) one(number int, c *generator.TestCase) (outcome, error) {
	unlock, err := shared(r.lock)
	if err != nil {
		return outcome{}, err
	}
	defer unlock()
	start := time.Now()
	var result *connectivity.Result
	for range attempts {
		if result = r.interpreter.ExecuteTestCase(c); result.Err == nil {
			break
		}
		fmt.Fprintf(os.Stderr, "case %d begins anew: %v\n", number, result.Err)
	}
	o := outcome{
		Number: number, Description: c.Description, Tags: c.Tags.Keys(), Steps: len(result.Steps),
		Passed: result.Err == nil && result.Passed(r.ignoreLoopback), Seconds: time.Since(start).Seconds(),
	}
	if result.Err != nil {
		o.Error = result.Err.Error()
		return o, nil
	}
	for _, s := range result.Steps {
		for _, counts := range s.LastComparison().ValueCountsByProtocol(r.ignoreLoopback) {
			o.Same += counts[connectivity.SameComparison]
			o.Differs += counts[connectivity.DifferentComparison]
			o.Ignored += counts[connectivity.IgnoredComparison]
		}
	}
	if !o.Passed {
		r.printer.PrintTestCaseResult(result)
	}
	return o, nil
}

// ranges reads "1-20,33".
func ranges(text string) (func(int) bool, error) {
	if text == "" {
		return func(int) bool { return true }, nil
	}
	var numbers []int
	for _, part := range strings.Split(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err := errors.Join(err1, err2); err != nil || first > last || last > 10_000 {
			return nil, fmt.Errorf("cases %q: write numbers and ranges, such as 1-20,33", text)
		}
		for n := first; n <= last; n++ {
			numbers = append(numbers, n)
		}
	}
	return func(n int) bool { return slices.Contains(numbers, n) }, nil
}

// discard is a report that nobody wants.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }
