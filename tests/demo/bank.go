package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

// The places of the play.
const (
	bank     = "yaobank"
	visitors = "yaobank-visitor"
)

// What is asked for, and what tells that it was told.
const (
	allKeys         = "http://database:2379/v2/keys?recursive=true"
	keysFromOutside = "http://database.yaobank:2379/v2/keys?recursive=true"
	oneKey          = "http://database:2379/v2/keys/accounts/519940/balance"
	owner           = "Robin Ashdown"
	neighbor        = "Mirela Kova"
	page            = "http://customer.yaobank/"
)

// Exit codes of `yaobank probe`.
const (
	noConnect = 7
	badStatus = 22
	timedOut  = 28
	noAnswer  = 52
)

// who is a pod to type commands in.
type who struct{ namespace, deployment string }

var (
	customer = who{bank, "customer"}
	summary  = who{bank, "summary"}
	visitor  = who{visitors, "visitor"}
)

// probe is the command line of a probe in a pod.
func (w who) probe(args ...string) string {
	return fmt.Sprintf("kubectl -n %s exec deploy/%s -- yaobank probe %s", w.namespace, w.deployment, strings.Join(args, " "))
}

// get is a GET of an address that may hold characters of the shell.
func (w who) get(url string) string { return w.probe("http", "GET", "'"+url+"'") }

// answer is what came of an attempt.
type answer struct {
	code   int
	status string // the status line without the protocol, empty without an answer
	text   string
}

// try runs a probe's command line.
func try(ctx context.Context, s *stage.Stage, line string) (answer, error) {
	got, err := s.Shell(ctx, line)
	if err != nil {
		return answer{}, err
	}
	a := answer{code: got.Code, text: got.Out}
	if first, _, _ := strings.Cut(got.Out, "\n"); strings.HasPrefix(first, "HTTP/") {
		_, a.status, _ = strings.Cut(first, " ")
	}
	if a.status == "" && got.Out == "" {
		a.text = got.Err
	}
	return a, nil
}

// short is the attempt in one line.
func (a answer) short() string {
	if a.status == "" {
		return clip(strings.Join(strings.Fields(a.text), " "), 200)
	}
	_, body, _ := strings.Cut(a.text, "\n\n")
	return a.status + "  " + clip(strings.Join(strings.Fields(body), " "), 180)
}

// tells wants an answer 200 that holds the words.
func tells(ctx context.Context, s *stage.Stage, line string, words ...string) (string, error) {
	a, err := try(ctx, s, line)
	if err != nil {
		return "", err
	}
	if a.code != 0 || !strings.HasPrefix(a.status, "200") {
		return a.short(), errDiffers("exit code %d, not an answer 200", a.code)
	}
	for _, w := range words {
		if !strings.Contains(a.text, w) {
			return a.short(), errDiffers("the answer does not hold %q", w)
		}
	}
	return a.short(), nil
}

// shows wants the web page with the account on it.
func shows(ctx context.Context, s *stage.Stage, line string) (string, error) {
	seen, err := tells(ctx, s, line, owner)
	if err != nil {
		return seen, err
	}
	return "200 OK, Welcome, " + owner, nil
}

// unreached wants an attempt that gets no answer from where it was meant to go:
// no connection, or the sidecar's own 503 in its place.
func unreached(ctx context.Context, s *stage.Stage, line string) (string, error) {
	a, err := try(ctx, s, line)
	if err != nil {
		return "", err
	}
	switch {
	case a.code == noConnect, a.code == timedOut, a.code == noAnswer:
		return a.short(), nil
	case a.code == badStatus && (strings.HasPrefix(a.status, "503") || strings.HasPrefix(a.status, "504")):
		return a.short(), nil
	}
	return a.short(), errDiffers("exit code %d: somebody answered", a.code)
}

// refused wants a 403 that holds the words.
func refused(ctx context.Context, s *stage.Stage, line string, words ...string) (string, error) {
	a, err := try(ctx, s, line)
	if err != nil {
		return "", err
	}
	if a.code != badStatus || !strings.HasPrefix(a.status, "403") {
		return a.short(), errDiffers("exit code %d, not an answer 403", a.code)
	}
	for _, w := range words {
		if !strings.Contains(a.text, w) {
			return a.short(), errDiffers("the 403 does not name %q", w)
		}
	}
	return a.short(), nil
}

// applied runs `kubectl apply` of a policy file.
func applied(r *Report, ctx context.Context, s *stage.Stage, file, expect string) bool {
	line := "kubectl apply -f tests/yaobank/policies/" + file
	return r.Step(ctx, Step{Type: line, Expect: expect, See: func(ctx context.Context) (string, error) {
		got, err := s.Shell(ctx, line)
		if err != nil {
			return "", err
		}
		if got.Code != 0 {
			return got.Out, errDiffers("exit code %d: %s", got.Code, got.Err)
		}
		return strings.TrimSpace(got.Out), nil
	}})
}

// pod is what the play needs to know of one.
type pod struct {
	name, node, ip, deployment string
}

// pods are the running pods of a deployment of the bank that are not about to
// end.
func pods(ctx context.Context, s *stage.Stage, app string) ([]pod, error) {
	out, err := s.Kubectl(ctx, "-n", bank, "get", "pods", "-l", "app="+app, "--field-selector=status.phase=Running", "-o",
		`jsonpath={range .items[*]}{.metadata.name},{.spec.nodeName},{.status.podIP},{.metadata.deletionTimestamp}{"\n"}{end}`)
	if err != nil {
		return nil, err
	}
	var found []pod
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), ",")
		if len(f) == 4 && f[3] == "" {
			found = append(found, pod{name: f[0], node: f[1], ip: f[2], deployment: app})
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no pod of %s runs", app)
	}
	return found, nil
}

// link is the node's end of a pod's network.
func link(ctx context.Context, s *stage.Stage, p pod) (string, error) {
	got, err := s.OnNode(ctx, p.node, "ip", "route", "get", p.ip)
	if err != nil {
		return "", err
	}
	f := strings.Fields(got.Out)
	for i := range f[:max(0, len(f)-1)] {
		if f[i] == "dev" {
			return f[i+1], nil
		}
	}
	return "", fmt.Errorf("no route to pod %s on %s: %s%s", p.name, p.node, got.Out, got.Err)
}

// clusterRanges are the addresses of pods.
var clusterRanges = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}

// reset puts the bank back to how it was before the first act: its pods without
// a sidecar, no policy, all keys as they were. The mesh stays installed if it is.
func reset(ctx context.Context, s *stage.Stage) error {
	for _, kind := range []string{"networkpolicies.networking.k8s.io", "meshpolicies.hauberk.dev", "peerauthentications.hauberk.dev"} {
		got, err := s.Run(ctx, "", s.KubectlPath(), "-n", bank, "delete", kind, "--all", "--ignore-not-found")
		if err != nil {
			return err
		}
		if got.Code != 0 && !strings.Contains(got.Err, "doesn't have a resource type") && !strings.Contains(got.Err, "could not find the requested resource") {
			return fmt.Errorf("delete %s of the bank: %s", kind, got.Err)
		}
	}
	if got, err := s.Run(ctx, "", s.KubectlPath(), "get", "namespace", bank, "-o", "name"); err != nil {
		return err
	} else if got.Code == 0 {
		if _, err := s.Kubectl(ctx, "label", "namespace", bank, "hauberk.dev/inject-"); err != nil {
			return err
		}
		// The owners first, so that nothing makes the pods again; they are gone when
		// their pods are.
		if _, err := s.Kubectl(ctx, "-n", bank, "delete", "deployments,jobs", "--all", "--cascade=foreground", "--wait=false"); err != nil {
			return err
		}
		if _, err := s.Kubectl(ctx, "-n", bank, "delete", "pods", "--all", "--grace-period=1"); err != nil {
			return err
		}
		if _, err := s.Kubectl(ctx, "-n", bank, "wait", "--for=delete", "deployments,jobs", "--all", "--timeout=60s"); err != nil {
			return err
		}
	}
	for _, file := range []string{"tests/yaobank/manifests/yaobank.yaml", "tests/demo/manifests/visitor.yaml", "tests/collector/manifests/collector.yaml"} {
		content, err := os.ReadFile(filepath.Join(s.Root, file))
		if err != nil {
			return fmt.Errorf("manifest of the play: %w", err)
		}
		if err := s.Apply(ctx, string(content)); err != nil {
			return err
		}
	}
	var errs []error
	for _, w := range []struct{ namespace, what string }{
		{bank, "deployment/database"}, {bank, "deployment/summary"}, {bank, "deployment/customer"},
		{visitors, "deployment/visitor"}, {"observability", "deployment/otel-collector"},
	} {
		if _, err := s.Kubectl(ctx, "-n", w.namespace, "rollout", "status", w.what, "--timeout=90s"); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return stage.Eventually(ctx, 30*time.Second, "the bank's page without the mesh", func(ctx context.Context) error {
		_, err := shows(ctx, s, visitor.get(page))
		return err
	})
}
