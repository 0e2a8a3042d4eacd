// Package setup is install, upgrade, uninstall and manifest: the embedded chart,
// rendered and applied by the Helm SDK, so that `helm list` and `helm uninstall`
// know the release too. It owns the order of the steps and the waiting.
package setup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/cli/values"
	"helm.sh/helm/v4/pkg/getter"
	"helm.sh/helm/v4/pkg/kube"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/install"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/internal/version"
)

// releaseName is Helm's name of the installation.
const releaseName = "hauberk"

// loadChart is the embedded chart with this command's version.
func loadChart() (*chart.Chart, error) {
	files, err := install.Chart()
	if err != nil {
		return nil, err
	}
	var buffered []*archive.BufferedFile
	for _, f := range files {
		buffered = append(buffered, &archive.BufferedFile{Name: f.Name, Data: f.Data})
	}
	c, err := loader.LoadFiles(buffered)
	if err != nil {
		return nil, fmt.Errorf("embedded chart: %w", err)
	}
	c.Metadata.AppVersion = version.Version
	return c, nil
}

// settings are what the user set, over what this command's version needs.
type settings struct {
	registry string
	values   values.Options
}

func (s *settings) merged() (map[string]any, error) {
	user, err := s.values.MergeValues(getter.Providers{})
	if err != nil {
		return nil, run.Fail(run.ExitBadInput, "see install/charts/hauberk/values.yaml for what can be set", "values: %w", err)
	}
	images := map[string]any{}
	for _, name := range []string{"control", "injector", "node", "proxy"} {
		images[name] = fmt.Sprintf("%s/hauberk-%s:%s", s.registry, name, version.Version)
	}
	return loader.MergeMaps(map[string]any{"images": images}, user), nil
}

// helm speaks to Helm's storage in the mesh's namespace.
func helm(c *run.Cluster) (*action.Configuration, error) {
	namespace := names.Namespace
	flags := genericclioptions.NewConfigFlags(false)
	flags.KubeConfig, flags.Context, flags.Namespace = &c.Kubeconfig, &c.Context, &namespace
	cfg := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	if err := cfg.Init(flags, namespace, "secret"); err != nil {
		return nil, fmt.Errorf("helm: %w", err)
	}
	return cfg, nil
}

// installed is the newest revision of the release; nil when there is none.
func installed(cfg *action.Configuration) (*release.Release, error) {
	last, err := cfg.Releases.Last(releaseName)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for an earlier installation: %w", err)
	}
	r, ok := last.(*release.Release)
	if !ok {
		return nil, fmt.Errorf("the release %s is of an unknown Helm format %T", releaseName, last)
	}
	return r, nil
}

// apply installs or upgrades, and reports which it did.
func apply(ctx context.Context, cfg *action.Configuration, vals map[string]any) (upgraded bool, err error) {
	c, err := loadChart()
	if err != nil {
		return false, err
	}
	last, err := installed(cfg)
	if err != nil {
		return false, err
	}
	if last != nil && last.Info.Status.IsPending() {
		// A run that was killed half-way leaves its record so; what it made is taken
		// over below.
		if _, err := cfg.Releases.Delete(releaseName, last.Version); err != nil {
			return false, fmt.Errorf("clear the record of an interrupted installation: %w", err)
		}
		if last, err = installed(cfg); err != nil {
			return false, err
		}
	}
	if last == nil {
		i := action.NewInstall(cfg)
		i.ReleaseName, i.Namespace = releaseName, names.Namespace
		i.WaitStrategy, i.ServerSideApply, i.ForceConflicts, i.TakeOwnership = kube.HookOnlyStrategy, true, true, true
		_, err = i.RunWithContext(ctx, c, vals)
		return false, err
	}
	u := action.NewUpgrade(cfg)
	u.Namespace, u.MaxHistory = names.Namespace, 5
	u.WaitStrategy, u.ServerSideApply, u.ForceConflicts, u.TakeOwnership = kube.HookOnlyStrategy, "true", true, true
	// What was set before stays set; what this command sets, and its chart's
	// defaults, are new.
	u.ResetThenReuseValues = true
	_, err = u.RunWithContext(ctx, releaseName, c, vals)
	return true, err
}

// manifest renders without a cluster.
func manifest(ctx context.Context, vals map[string]any) (string, error) {
	c, err := loadChart()
	if err != nil {
		return "", err
	}
	i := action.NewInstall(action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler)))
	i.ReleaseName, i.Namespace, i.DryRunStrategy, i.Replace = releaseName, names.Namespace, action.DryRunClient, true
	i.DisableHooks = true
	r, err := i.RunWithContext(ctx, c, vals)
	if err != nil {
		return "", err
	}
	rel, ok := r.(*release.Release)
	if !ok {
		return "", fmt.Errorf("render: unknown Helm format %T", r)
	}
	return rel.Manifest, nil
}
