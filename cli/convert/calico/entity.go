package calico

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
	"github.com/hauberk-mesh/hauberk/cli/convert/selector"
)

// maxRefs is how many network sets a peer of ours may name.
const maxRefs = 10

// selects is what the entity's selectors select together; nil when it has none.
// In a policy of a namespace each of them is about that namespace only, unless
// there is a namespaceSelector.
func (e *entity) selects(at manifest.At, own string) *selector.Expr {
	var list []*selector.Expr
	add := func(x *selector.Expr, ok bool) {
		if ok {
			list = append(list, x)
		}
	}
	if e.Selector != "" {
		add(parse(at.In("selector"), e.Selector))
	}
	if a := e.ServiceAccounts; a != nil {
		if a.Selector != "" {
			add(parseAccounts(at.In("serviceAccounts.selector"), a.Selector))
		}
		if len(a.Names) > 0 {
			add(&selector.Expr{Kind: selector.Match, Label: labelServiceAccount, Op: selector.In, Values: a.Names}, true)
		}
		if a.Selector == "" && len(a.Names) == 0 {
			at.In("serviceAccounts").Error("it is empty: remove it")
		}
	}
	switch {
	case e.NamespaceSelector != "":
		add(parseNamespaces(at.In("namespaceSelector"), e.NamespaceSelector))
	case own != "" && (len(list) > 0 || e.NotSelector != ""):
		list = append(list, inNamespace(own))
	}
	return selector.Both(list...)
}

// ends is the entity as peers: nil with any set when it is anyone.
type ends struct {
	any   bool
	peers []v1alpha1.Peer
}

// peers converts the end that is not the policy's own.
func (c *converter) peers(at manifest.At, e *entity, own string, version *int) ends {
	if len(e.Domains) > 0 {
		at.In("domains").Error("names can't be peers: the answers of DNS are not trusted; name the networks")
	}
	if e.Services != nil {
		return c.services(at, e, own, version)
	}
	positive := e.selects(at, own)
	var not *selector.Expr
	var notNets []netip.Prefix
	if e.NotSelector != "" {
		if x, ok := parse(at.In("notSelector"), e.NotSelector); ok {
			not = x
			for _, s := range c.selected(at.In("notSelector"), x) {
				notNets = append(notNets, s.nets...)
				at.In("notSelector").Note("the addresses of %s are excepted as they are now: change the policy when you change the set", s.from)
			}
		}
	}
	limited := len(e.Nets) > 0 || len(e.NotNets) > 0 || version != nil || len(notNets) > 0
	nets := manifest.Everywhere()
	if len(e.Nets) > 0 {
		nets = prefixes(at.In("nets"), e.Nets)
	}
	if version != nil {
		nets = manifest.Common(nets, family(at, *version))
	}
	notNets = append(notNets, prefixes(at.In("notNets"), e.NotNets)...)
	networks, err := manifest.Less(nets, notNets)
	if err != nil {
		at.In("notNets").Error("%s", err)
	}
	if !limited {
		networks = nil
	} else if len(networks) == 0 {
		return ends{}
	}
	if len(networks) > maxNetworks {
		at.In("nets").Error("a peer has at most %d networks, this one %d: split the rule", maxNetworks, len(networks))
	}
	if positive == nil && not == nil {
		if !limited {
			return ends{any: true}
		}
		return ends{peers: []v1alpha1.Peer{{Networks: networks}}}
	}
	return c.selectedPeers(at, positive, not, own, networks)
}

// selectedPeers is the pods and network sets that positive selects (nil: anyone)
// and not does not, with addresses in networks.
func (c *converter) selectedPeers(at manifest.At, positive, not *selector.Expr, own string, networks []v1alpha1.Network) ends {
	var out ends
	if positive == nil {
		// Whoever the selector does not select, pod or not.
		out.peers = append(out.peers, v1alpha1.Peer{Entities: []string{"host", "world"}, Networks: networks})
		positive = selector.Negate(&selector.Expr{Kind: selector.Global})
	} else if sets := c.selected(at, positive); len(sets) > 0 {
		if not != nil {
			at.In("notSelector").Error("the selector selects %s too, of which pods can't be taken out: split the rule", sets[0].from)
		}
		out.peers = append(out.peers, c.setPeers(at, positive, own, networks)...)
	}
	if not != nil {
		positive = selector.Both(positive, selector.Negate(not))
	}
	list, _ := terms(at, positive)
	for _, term := range list {
		p, none, ok := podsOf(at, term, own)
		if !ok || none {
			continue
		}
		peer := v1alpha1.Peer{Networks: networks, NamespaceSelector: p.namespaceSelector(own)}
		if len(p.pod) > 0 || p.own && !p.hasAccounts && len(p.account) == 0 {
			peer.PodSelector = labelSelector(p.pod)
		}
		if p.hasAccounts {
			peer.ServiceAccounts = p.accountRefs(at, own)
		}
		if len(p.account) > 0 {
			peer.ServiceAccountSelector = labelSelector(p.account)
		}
		// Without a word of namespaces a peer of a MeshPolicy is of its own.
		if !p.own && peer.NamespaceSelector == nil && (peer.PodSelector != nil || peer.ServiceAccountSelector != nil || !p.hasAccounts) {
			peer.NamespaceSelector = labelSelector(nil)
		}
		out.peers = append(out.peers, peer)
	}
	return out
}

// accountRefs names the service accounts in the namespaces that are meant.
func (p *pods) accountRefs(at manifest.At, own string) []v1alpha1.ServiceAccountRef {
	namespaces := p.namespaces
	switch {
	case p.own:
		namespaces = []string{""}
	case namespaces == nil:
		at.In("serviceAccounts.names").Error("a service account is of one namespace: add a namespaceSelector that names them (projectcalico.org/name in {…})")
	}
	var out []v1alpha1.ServiceAccountRef
	for _, ns := range namespaces {
		for _, name := range p.accounts {
			out = append(out, v1alpha1.ServiceAccountRef{Name: name, Namespace: ns})
		}
	}
	return out
}

// setPeers names the network sets: by their labels where the policy may, else by
// their networks.
func (c *converter) setPeers(at manifest.At, positive *selector.Expr, own string, networks []v1alpha1.Network) []v1alpha1.Peer {
	list, _ := terms(at, positive)
	var refs []v1alpha1.NetworkSetRef
	var inline []*networkSet
	for _, term := range list {
		var namespaces []string
		cluster := false
		for _, s := range c.networks {
			switch ns := s.from.Meta.Namespace; {
			case !c.matches(at, term, s):
			case ns == "":
				cluster = true
			case own != "" && ns != own:
				inline = append(inline, s)
			case !slices.Contains(namespaces, ns):
				namespaces = append(namespaces, ns)
			}
		}
		if !cluster && len(namespaces) == 0 {
			continue
		}
		labels, none, ok := podsOf(at, ownLabels(term), own)
		if !ok || none {
			continue
		}
		pick := labelSelector(labels.pod)
		if cluster {
			refs = append(refs, v1alpha1.NetworkSetRef{Kind: "ClusterNetworkSet", Selector: pick})
		}
		slices.Sort(namespaces)
		for _, ns := range namespaces {
			ref := v1alpha1.NetworkSetRef{Kind: "NetworkSet", Selector: pick}
			if own == "" {
				ref.Namespace = ns
			}
			refs = append(refs, ref)
		}
	}
	var out []v1alpha1.Peer
	for chunk := range slices.Chunk(refs, maxRefs) {
		out = append(out, v1alpha1.Peer{NetworkSets: chunk, Networks: networks})
	}
	for _, s := range inline {
		at.Note("a policy of namespace %s knows no network set of another: the networks of %s are written out", own, s.from)
		out = append(out, c.inlined(s, networks)...)
	}
	return out
}

// ownLabels leaves out what is the same for all sets of one namespace.
func ownLabels(term selector.Term) selector.Term {
	return slices.DeleteFunc(slices.Clone(term), func(l selector.Literal) bool {
		return l.Kind == selector.Global || strings.HasPrefix(l.Label, prefixNamespace) || strings.HasPrefix(l.Label, prefixAccount) ||
			slices.Contains([]string{labelNamespace, labelServiceAccount, labelOrchestrator}, l.Label)
	})
}

// inlined is the set's networks, cut with the others.
func (c *converter) inlined(s *networkSet, networks []v1alpha1.Network) []v1alpha1.Peer {
	if networks == nil {
		list, _ := manifest.Less(s.nets, nil)
		if len(list) == 0 {
			return nil
		}
		return []v1alpha1.Peer{{Networks: list}}
	}
	var out []v1alpha1.Network
	for _, n := range networks {
		var except []netip.Prefix
		for _, e := range n.Except {
			except = append(except, netip.MustParsePrefix(e))
		}
		cut, err := manifest.Less(manifest.Common(s.nets, []netip.Prefix{netip.MustParsePrefix(n.CIDR)}), except)
		if err == nil {
			out = append(out, cut...)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return []v1alpha1.Peer{{Networks: out}}
}

func (c *converter) services(at manifest.At, e *entity, own string, version *int) ends {
	if e.Selector != "" || e.NotSelector != "" || e.NamespaceSelector != "" || e.ServiceAccounts != nil ||
		len(e.Nets)+len(e.NotNets)+len(e.Ports)+len(e.NotPorts) > 0 || version != nil {
		at.In("services").Error("a Service stands alone: it says its pods and ports itself")
	}
	ref := v1alpha1.ServiceRef{Name: e.Services.Name, Namespace: e.Services.Namespace}
	if ref.Name == "" || ref.Namespace == "" && own == "" {
		at.In("services").Error("a Service needs a name, and in a GlobalNetworkPolicy a namespace")
	}
	if ref.Namespace == own {
		ref.Namespace = ""
	}
	return ends{peers: []v1alpha1.Peer{{Services: []v1alpha1.ServiceRef{ref}}}}
}

func family(at manifest.At, version int) []netip.Prefix {
	switch version {
	case 4:
		return manifest.Everywhere()[:1]
	case 6:
		return manifest.Everywhere()[1:]
	}
	at.Error("ipVersion %d is neither 4 nor 6", version)
	return nil
}
