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
	"os"

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
	objects := &source.Objects{TrustDomain: names.TrustDomain}
	absent := false
	if len(from.files) == 0 || from.live {
		clients, err := env.Clients()
		if err != nil {
			return nil, err
		}
		if objects, err = source.LoadObjects(ctx, clients.Kube, clients.Dynamic); err != nil {
			return nil, err
		}
		settings, err := mesh.ReadSettings(ctx, clients)
		if err != nil {
			return nil, err
		}
		objects.TrustDomain = settings.Inject.TrustDomain
		absent = len(settings.Missing) == settingsParts
	}
	var documents []byte
	for _, name := range from.files {
		data, err := readFile(env, name)
		if err != nil {
			return nil, err
		}
		documents = append(append(documents, data...), "\n---\n"...)
	}
	if len(documents) > 0 {
		// Workloads of files stand for a pod each. Namespaces must be known before
		// it is decided whether those are in the mesh.
		if _, err := objects.Add(bytes.NewReader(documents)); err != nil {
			return nil, run.Fail(run.ExitBadInput, "mend the file; `kubectl apply --dry-run=client -f` shows more", "read the files: %w", err)
		}
		if err := addTemplates(objects, documents); err != nil {
			return nil, run.Fail(run.ExitBadInput, "mend the file; `kubectl apply --dry-run=client -f` shows more", "read the files: %w", err)
		}
	}
	w := newWorld(source.FactsFrom(objects))
	w.absent = absent
	return w, nil
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
