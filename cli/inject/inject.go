// Package inject is `hauberk inject` and `hauberk uninject`: they put the
// sidecar into manifests, or take it out, with the injector's own patch, and say
// why a pod has one or not.
package inject

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/injector/patch"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/internal/version"
)

// liveTimeout is how long the live settings may take.
const liveTimeout = 15 * time.Second

// settings are the flags that replace what the cluster says.
type settings struct {
	file, bundleFile                      string
	image, control, trustDomain, revision string
}

func (s *settings) addFlags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.image, "proxy-image", "", "image of the sidecar (default: the live injector's)")
	f.StringVar(&s.control, "control-address", "", "ip:port of the control plane (default: the live Service's)")
	f.StringVar(&s.bundleFile, "trust-bundle-file", "", "file with the trust roots, PEM (default: the live ConfigMap's)")
	f.StringVar(&s.trustDomain, "trust-domain", "", "SPIFFE trust domain (default: the live one)")
	f.StringVar(&s.revision, "revision", "", "revision of the mesh (default: the live one)")
}

// complete reports whether the cluster need not be asked.
func (s *settings) complete() bool { return s.image != "" && s.control != "" && s.bundleFile != "" }

// config is what the injector would use: the live one's settings, and flags
// over them.
func (s *settings) config(ctx context.Context, env *run.Env) (patch.Config, error) {
	cfg := patch.Config{Version: version.Version, TrustDomain: names.TrustDomain}
	if !s.complete() {
		live, err := readLive(ctx, env)
		if err != nil {
			return cfg, run.Fail(run.Code(err), "without a cluster give --proxy-image, --control-address and --trust-bundle-file", "read the mesh's settings: %w", err)
		}
		cfg = live.Inject
	}
	for _, o := range []struct {
		flag string
		into *string
	}{{s.image, &cfg.Image}, {s.control, &cfg.ControlAddress}, {s.trustDomain, &cfg.TrustDomain}, {s.revision, &cfg.Revision}} {
		if o.flag != "" {
			*o.into = o.flag
		}
	}
	if s.bundleFile != "" {
		data, err := os.ReadFile(s.bundleFile)
		if err != nil {
			return cfg, run.Fail(run.ExitBadInput, "", "read the trust bundle: %w", err)
		}
		cfg.TrustBundle = string(data)
	}
	if err := cfg.Validate(); err != nil {
		return cfg, run.Fail(run.ExitBadInput, "is the mesh installed there? Otherwise give --proxy-image, --control-address and --trust-bundle-file",
			"the sidecar's settings: %w", err)
	}
	return cfg, nil
}

func readLive(ctx context.Context, env *run.Env) (*mesh.Settings, error) {
	clients, err := env.Clients()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	return mesh.ReadSettings(ctx, clients)
}

// Command is `hauberk inject`.
func Command(env *run.Env) *cobra.Command {
	s := &settings{}
	c := &cobra.Command{
		Use:   "inject -f FILE",
		Short: "Print manifests with the sidecar in every pod",
		Long: `Print manifests with the sidecar in every pod and pod template, as the injector of the cluster would add it.
Labels hauberk.dev/inject: disabled of pods are kept to. What is changed is told on standard error.`,
		Example: `  hauberk inject -f deployment.yaml | kubectl apply -f -
  hauberk inject explain yaobank/customer`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if s.file == "" {
				return run.Fail(run.ExitUsage, "give -f FILE, or -f - for the standard input", "which manifests?")
			}
			cfg, err := s.config(c.Context(), env)
			if err != nil {
				return err
			}
			return rewrite(env, s.file, "inject", func(r io.Reader, w io.Writer) (patch.Report, error) {
				return patch.InjectManifest(r, w, cfg, patch.ManifestOptions{Namespace: env.CurrentNamespace()})
			})
		},
	}
	c.Flags().StringVarP(&s.file, "filename", "f", "", "file with manifests (- reads the standard input)")
	s.addFlags(c)
	c.AddCommand(explainCommand(env))
	return c
}

// Uninject is `hauberk uninject`.
func Uninject(env *run.Env) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "uninject -f FILE",
		Short: "Print manifests without the sidecar, their probes as they were",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if file == "" {
				return run.Fail(run.ExitUsage, "give -f FILE, or -f - for the standard input", "which manifests?")
			}
			return rewrite(env, file, "uninject", patch.UninjectManifest)
		},
	}
	c.Flags().StringVarP(&file, "filename", "f", "", "file with manifests (- reads the standard input)")
	return c
}

// rewrite copies the manifests and tells of each object with pods.
func rewrite(env *run.Env, file, verb string, f func(io.Reader, io.Writer) (patch.Report, error)) error {
	in, err := open(env, file)
	if err != nil {
		return err
	}
	defer in.Close()
	report, err := f(in, env.Out)
	if err != nil {
		return run.Fail(run.ExitBadInput, "nothing was written", "%s %s: %w", verb, file, err)
	}
	for _, item := range report.Items {
		what := verb + "ed"
		if !item.Changed {
			what = "unchanged"
			if item.Decision.Sentence != "" {
				what += " (" + item.Decision.Sentence + ")"
			}
		}
		fmt.Fprintf(env.Err, "%s %s/%s: %s\n", item.Kind, item.Namespace, item.Name, what)
		for _, w := range item.Decision.Warnings {
			fmt.Fprintf(env.Err, "  %s %s\n", env.Paint(env.Err, run.Yellow, "!"), w)
		}
	}
	if len(report.Items) == 0 {
		fmt.Fprintf(env.Err, "%s holds no object with pods\n", file)
	}
	return nil
}

func open(env *run.Env, file string) (io.ReadCloser, error) {
	if file == "-" {
		return io.NopCloser(env.In), nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, run.Fail(run.ExitBadInput, "", "%w", err)
	}
	return f, nil
}

func explainCommand(env *run.Env) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "explain [NAMESPACE/]POD | deploy/NAME | -f FILE",
		Short: "Say why a pod has a sidecar or has none",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case len(args) == 1 && file == "":
				return explainLive(c.Context(), env, args[0])
			case len(args) == 0 && file != "":
				return explainFile(c.Context(), env, file)
			}
			return run.Fail(run.ExitUsage, "see `hauberk inject explain --help`", "name a pod or workload, or give -f FILE")
		},
	}
	c.Flags().StringVarP(&file, "filename", "f", "", "file with manifests (- reads the standard input)")
	return c
}

func explainLive(ctx context.Context, env *run.Env, ref string) error {
	clients, err := env.Clients()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	live, err := mesh.ReadSettings(ctx, clients)
	if err != nil {
		return err
	}
	p, err := mesh.FindPod(ctx, clients, ref, env.CurrentNamespace())
	if err != nil {
		return err
	}
	ns, err := clients.Kube.CoreV1().Namespaces().Get(ctx, p.Namespace, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read namespace %s: %w", p.Namespace, err)
	}
	facts := patch.NamespaceFacts{Name: ns.Name, Labels: ns.Labels}
	d, decideErr := mesh.Decide(p, ns, live.Inject)
	has := mesh.Sidecar(p) != nil
	if env.Format == "json" || env.Format == "yaml" {
		answer := map[string]any{"apiVersion": run.OutputVersion, "kind": "InjectionAnswer", "pod": p.Namespace + "/" + p.Name,
			"hasSidecar": has, "wouldInject": d.Inject, "reason": d.Reason, "sentence": d.Sentence, "warnings": d.Warnings}
		if decideErr != nil {
			answer["refusal"] = decideErr.Error()
		}
		_, err := env.Structured(answer)
		return err
	}
	for _, m := range live.Missing {
		fmt.Fprintf(env.Err, "%s the mesh is not whole: missing is %s\n", env.Paint(env.Err, run.Yellow, "!"), m)
	}
	switch {
	case has:
		fmt.Fprintf(env.Out, "pod %s/%s has a sidecar, put in by version %s\n", p.Namespace, p.Name, mesh.InjectedVersion(p))
	case d.Inject:
		fmt.Fprintf(env.Out, "pod %s/%s has no sidecar and would get one now: it is older than the label or the mesh. Restart it\n", p.Namespace, p.Name)
	default:
		fmt.Fprintf(env.Out, "pod %s/%s has no sidecar\n", p.Namespace, p.Name)
	}
	bare, err := patch.Uninject(p)
	if err != nil {
		return fmt.Errorf("take the sidecar of pod %s/%s out: %w", p.Namespace, p.Name, err)
	}
	fmt.Fprintf(env.Out, "made anew it would be %s", patch.Explain(bare, facts, live.Inject))
	return nil
}

// explainFile explains each pod and template of a file. Labels of namespaces
// are those of the file, then those of the cluster if there is one.
func explainFile(ctx context.Context, env *run.Env, file string) error {
	in, err := open(env, file)
	if err != nil {
		return err
	}
	defer in.Close()
	data, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	namespaces, err := namespacesOf(data)
	if err != nil {
		return run.Fail(run.ExitBadInput, "", "%s: %w", file, err)
	}
	facts := func(name string) patch.NamespaceFacts {
		if labels, ok := namespaces[name]; ok {
			return patch.NamespaceFacts{Name: name, Labels: labels}
		}
		labels, err := liveLabels(ctx, env, name)
		if err != nil {
			fmt.Fprintf(env.Err, "%s the labels of namespace %s are not known: %v\n", env.Paint(env.Err, run.Yellow, "!"), name, err)
		}
		namespaces[name] = labels
		return patch.NamespaceFacts{Name: name, Labels: labels}
	}
	// Only the decision matters, so the settings need not be those of any mesh.
	report, err := patch.InjectManifest(bytes.NewReader(data), io.Discard, patch.Config{}, patch.ManifestOptions{Namespace: env.CurrentNamespace(), Facts: facts})
	if len(report.Items) == 0 && err != nil {
		return run.Fail(run.ExitBadInput, "", "%s: %w", file, err)
	}
	if env.Format == "json" || env.Format == "yaml" {
		items := []map[string]any{}
		for _, item := range report.Items {
			row := map[string]any{"kind": item.Kind, "namespace": item.Namespace, "name": item.Name, "wouldInject": item.Decision.Inject,
				"reason": item.Decision.Reason, "sentence": item.Decision.Sentence, "warnings": item.Decision.Warnings}
			if item.Err != nil {
				row["refusal"] = item.Err.Error()
			}
			items = append(items, row)
		}
		_, err := env.Structured(map[string]any{"apiVersion": run.OutputVersion, "kind": "InjectionAnswerList", "items": items})
		return err
	}
	for _, item := range report.Items {
		verdict := "not injected"
		switch {
		case item.Err != nil:
			verdict = "refused: " + item.Err.Error()
		case item.Decision.Inject:
			verdict = "injected"
		}
		if item.Err == nil {
			verdict += fmt.Sprintf(" (%s): %s", item.Decision.Reason, item.Decision.Sentence)
		}
		fmt.Fprintf(env.Out, "%s %s/%s: %s\n", item.Kind, item.Namespace, item.Name, verdict)
		for _, w := range item.Decision.Warnings {
			fmt.Fprintf(env.Out, "  %s %s\n", env.Warn(), w)
		}
	}
	if len(report.Items) == 0 {
		fmt.Fprintf(env.Err, "%s holds no object with pods\n", file)
	}
	return nil
}

// namespacesOf is the labels of the Namespace objects of a stream.
func namespacesOf(data []byte) (map[string]map[string]string, error) {
	found := make(map[string]map[string]string)
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		var ns corev1.Namespace
		if err := yaml.Unmarshal(document, &ns); err == nil && ns.Kind == "Namespace" {
			found[ns.Name] = ns.Labels
		}
	}
}

func liveLabels(ctx context.Context, env *run.Env, name string) (map[string]string, error) {
	clients, err := env.Clients()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	ns, err := clients.Kube.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, errors.New("there is none in the cluster or in the file")
	}
	if err != nil {
		return nil, err
	}
	return ns.Labels, nil
}
