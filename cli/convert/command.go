package convert

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
	"github.com/hauberk-mesh/hauberk/cli/run"
)

// Command is `hauberk convert`.
func Command(env *run.Env) *cobra.Command {
	opts := Defaults()
	var files []string
	var output string
	var check bool
	c := &cobra.Command{
		Use:   "convert -f FILE|DIR|-",
		Short: "Print the policies of Calico and Istio as Hauberk's",
		Long: `Print the policies of Calico (v3) and Istio (security.istio.io) as Hauberk's, which mean exactly the same.
What can't be said is an error that names file, object and field: then nothing is printed. Give all manifests at
once: orders, tiers and network sets are of them together. Notes are on standard error; no cluster is asked.`,
		Example: `  hauberk convert -f calico/ -f istio/ -o hauberk.yaml
  kubectl get networkpolicies.crd.projectcalico.org,globalnetworkpolicies.crd.projectcalico.org,tiers.crd.projectcalico.org -A -o yaml | hauberk convert -f -
  hauberk convert -f policies.yaml --check`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return run.Fail(run.ExitUsage, "give -f FILE, -f DIR, or -f - for the standard input", "which manifests?")
			}
			opts.Namespace = env.CurrentNamespace()
			inputs, err := readAll(env, files)
			if err != nil {
				return err
			}
			text, report := Convert(inputs, opts)
			for _, n := range report.Notes {
				if !check && len(report.Errors) == 0 {
					fmt.Fprintf(env.Err, "%s %s\n", env.Paint(env.Err, run.Yellow, "!"), n)
				}
			}
			if len(report.Errors) > 0 {
				for _, e := range report.Errors {
					fmt.Fprintf(env.Err, "%s %s\n", env.Paint(env.Err, run.Red, "error:"), e)
				}
				fmt.Fprintf(env.Err, "nothing was written: %s\n", count(len(report.Errors), "error", "errors"))
				return run.Told(run.ExitRuntime)
			}
			switch {
			case check:
				return nil
			case output != "" && output != "-":
				return os.WriteFile(output, text, 0o644)
			}
			_, err = env.Out.Write(text)
			return err
		},
	}
	f := c.Flags()
	f.StringArrayVarP(&files, "filename", "f", nil, "file or folder with manifests, - for the standard input; repeat it for more")
	f.StringVarP(&output, "output", "o", "", "file to write instead of the standard output")
	f.BoolVar(&check, "check", false, "only say what can't be converted")
	f.StringVar(&opts.Istio.RootNamespace, "istio-root-namespace", opts.Istio.RootNamespace, "namespace of Istio's policies for the whole mesh")
	f.StringVar(&opts.Istio.TrustDomain, "trust-domain", opts.Istio.TrustDomain, "trust domain of the mesh")
	f.StringArrayVar(&opts.Istio.Aliases, "trust-domain-alias", nil, "trust domain that stands for the mesh's, as in Istio's trustDomainAliases; repeat it for more")
	f.BoolVar(&opts.Istio.HostsAnyPort, "hosts-any-port", false, "take each of Istio's hosts to mean the host with any port")
	return c
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// readAll reads files, and of folders the files with manifests, deep too.
func readAll(env *run.Env, files []string) ([]manifest.Input, error) {
	var out []manifest.Input
	for _, name := range files {
		if name == "-" {
			data, err := io.ReadAll(env.In)
			if err != nil {
				return nil, fmt.Errorf("read the standard input: %w", err)
			}
			out = append(out, manifest.Input{Name: "standard input", Data: data})
			continue
		}
		before := len(out)
		err := filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if path != name && !slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(filepath.Ext(path))) {
				return nil
			}
			data, err := os.ReadFile(path)
			out = append(out, manifest.Input{Name: path, Data: data})
			return err
		})
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil, run.Fail(run.ExitBadInput, "", "%w", err)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if len(out) == before {
			return nil, run.Fail(run.ExitBadInput, "files with manifests end in .yaml, .yml or .json", "%s holds no manifest", name)
		}
	}
	return out, nil
}
