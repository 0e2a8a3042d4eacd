// Package verdict is `hauberk policy`: it answers whether somebody may reach
// something, and why, from a live cluster or from files. It asks the policy
// model that the kernel rules and the sidecars are renderings of, so it sends
// no packet.
//
// It owns how ends are named and how answers are worded. It does not own what
// policies mean (policy) or how they are compiled (control/compile).
package verdict

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/source"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// world is what is known: facts and what follows from them.
type world struct {
	facts     compile.Facts
	resources *compile.Resources
	pods      map[string]*compile.Pod // by UID
	// absent says that the cluster has no mesh that would enforce the answer.
	absent bool
}

// origin says where facts come from.
type origin struct {
	files []string
	live  bool // with files: add them to what the cluster has
}

// settingsParts is how many parts of an installation settings are read from:
// when all are missing there is none.
const settingsParts = 3

// load reads facts from the cluster, from files, or from both.
func load(ctx context.Context, env *run.Env, from origin) (*world, error) {
	objects, absent, err := loadObjects(ctx, env, from)
	if err != nil {
		return nil, err
	}
	w := newWorld(source.FactsFrom(objects))
	w.absent = absent
	return w, nil
}

// loadObjects is load before the conversion; absent says that the cluster has no
// mesh.
func loadObjects(ctx context.Context, env *run.Env, from origin) (objects *source.Objects, absent bool, err error) {
	objects = &source.Objects{TrustDomain: names.TrustDomain}
	if len(from.files) == 0 || from.live {
		clients, err := env.Clients()
		if err != nil {
			return nil, false, err
		}
		if objects, err = source.LoadObjects(ctx, clients.Kube, clients.Dynamic); err != nil {
			return nil, false, err
		}
		settings, err := mesh.ReadSettings(ctx, clients)
		if err != nil {
			return nil, false, err
		}
		objects.TrustDomain = settings.Inject.TrustDomain
		absent = len(settings.Missing) == settingsParts
	}
	return objects, absent, addFiles(env, objects, from.files)
}

// manifest is the text of one file.
type manifest struct {
	name string
	text []byte
}

// addFiles adds what manifests say.
func addFiles(env *run.Env, objects *source.Objects, files []string) error {
	var manifests []manifest
	for _, name := range files {
		more, err := readManifests(env, name)
		if err != nil {
			return err
		}
		manifests = append(manifests, more...)
	}
	// Workloads of files stand for a pod each. Namespaces must be known before it
	// is decided whether those are in the mesh.
	for _, add := range []func([]byte) error{
		func(text []byte) error {
			_, err := objects.Add(bytes.NewReader(text))
			return err
		},
		func(text []byte) error { return addTemplates(objects, text) },
	} {
		for _, m := range manifests {
			if err := add(m.text); err != nil {
				return run.Fail(run.ExitBadInput, "mend the file; `kubectl apply --dry-run=client -f` shows more", "read %s: %w", m.name, err)
			}
		}
	}
	if len(manifests) > 0 {
		completePods(objects)
	}
	return nil
}

func newWorld(facts compile.Facts) *world {
	w := &world{facts: facts, resources: compile.Compile(facts), pods: make(map[string]*compile.Pod, len(facts.Pods))}
	for i := range facts.Pods {
		p := &facts.Pods[i]
		if !p.Completed {
			w.pods[p.UID] = p
		}
	}
	return w
}

// readManifests is a file, or all YAML and JSON files below a directory in order
// of their names, less those that are for this command or for kustomize.
func readManifests(env *run.Env, name string) ([]manifest, error) {
	if info, err := os.Stat(name); name == "-" || err != nil || !info.IsDir() {
		text, err := readFile(env, name)
		if name == "-" {
			name = "the standard input"
		}
		return []manifest{{name, text}}, err
	}
	var all []manifest
	err := filepath.WalkDir(name, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)) {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var head metav1.TypeMeta
		first, _, _ := bytes.Cut(text, []byte("\n---"))
		if yaml.Unmarshal(first, &head) == nil && (head.APIVersion == run.OutputVersion || strings.HasPrefix(head.APIVersion, "kustomize.config.k8s.io/")) {
			return nil
		}
		all = append(all, manifest{path, text})
		return nil
	})
	if err == nil && len(all) == 0 {
		return nil, run.Fail(run.ExitBadInput, "manifests end in .yaml, .yml or .json", "directory %s has no manifests", name)
	}
	return all, err
}

func readFile(env *run.Env, name string) ([]byte, error) {
	if name == "-" {
		data, err := io.ReadAll(env.In)
		if err != nil {
			return nil, fmt.Errorf("read the standard input: %w", err)
		}
		return data, nil
	}
	data, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, run.Fail(run.ExitBadInput, "", "%w", err)
	}
	return data, err
}

// warnings are what could not be read, for standard error.
func (w *world) warnings(env *run.Env) {
	for _, p := range w.facts.Problems {
		fmt.Fprintf(env.Err, "%s %s\n", env.Paint(env.Err, run.Yellow, "!"), p)
	}
}
