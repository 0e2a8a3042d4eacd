package istio

import (
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
)

func sameCommon(a, b *v1alpha1.RuleCommon) bool { return reflect.DeepEqual(a, b) }

// clause is an AND of conditions and of the opposite of others.
type clause struct {
	yes conditions
	not []conditions
}

// except adds the opposite of conditions, unless nothing meets them.
func (c *clause) except(n conditions) {
	if !n.never() {
		c.not = append(c.not, n)
	}
}

const scheme = "spiffe://"

var identity = regexp.MustCompile(`^/ns/[^/*]+/sa/[^/*]+$`)

// source converts who calls.
func (c *converter) source(at manifest.At, namespace string, s *source, out *clause) {
	c.identities(at.In("principals"), s.Principals, s.NotPrincipals, c.principal, out)
	c.identities(at.In("namespaces"), s.Namespaces, s.NotNamespaces, c.namespace, out)
	c.identities(at.In("serviceAccounts"), s.ServiceAccounts, s.NotServiceAccounts, func(at manifest.At, text string) []string {
		return c.serviceAccount(at, namespace, text)
	}, out)
	addresses(at, "ipBlocks", "notIpBlocks", s.IPBlocks, s.NotIPBlocks, out)
	for _, f := range []struct {
		field string
		list  []string
		why   string
	}{
		{"requestPrincipals", s.RequestPrincipals, noTokens}, {"notRequestPrincipals", s.NotRequestPrincipals, noTokens},
		{"remoteIpBlocks", s.RemoteIPBlocks, noRemote}, {"notRemoteIpBlocks", s.NotRemoteIPBlocks, noRemote},
	} {
		if len(f.list) > 0 {
			at.In("%s", f.field).Error("%s", f.why)
		}
	}
}

// Why some fields can't be converted.
const (
	noTokens = "tokens of requests can't be policy yet: keep what verifies them, and leave the rule out"
	noRemote = "no header is believed that says where a request came from: use ipBlocks, which compares the connection's own address"
)

// identities converts lists of who proved to be whom. not fields are named like
// the others.
func (c *converter) identities(at manifest.At, list, not []string, read func(manifest.At, string) []string, out *clause) {
	all := func(at manifest.At, list []string) []string {
		patterns := []string{}
		for i, text := range list {
			for _, p := range read(at.In("[%d]", i), text) {
				if !slices.Contains(patterns, p) {
					patterns = append(patterns, p)
				}
			}
		}
		return patterns
	}
	if len(list) > 0 {
		out.yes, _ = both(out.yes, conditions{principals: all(at, list)})
	}
	if len(not) > 0 {
		out.except(conditions{principals: all(negated(at), not)})
	}
}

// negated is the field's opposite, such as notPaths.
func negated(at manifest.At) manifest.At {
	i := strings.LastIndexByte(at.Field, '.') + 1
	name := at.Field[i:]
	at.Field = at.Field[:i] + "not" + strings.ToUpper(name[:1]) + name[1:]
	return at
}

// principal is the SPIFFE IDs of a pattern. The mesh's own trust domain, its
// aliases and cluster.local stand for each other, as in Istio.
func (c *converter) principal(at manifest.At, text string) []string {
	if strings.HasPrefix(text, scheme) {
		at.Error("%q: Istio writes principals without %s", text, scheme)
		return nil
	}
	if text == "" {
		at.Error("it is empty")
		return nil
	}
	if text == "*" {
		return []string{scheme + "*"}
	}
	if end, ok := strings.CutPrefix(text, "*"); ok {
		// Of every trust domain that ends so: all that there are were named.
		i := strings.Index(end, "/ns/")
		if i < 0 || !identity.MatchString(end[i:]) {
			at.Error("%q: a SPIFFE ID is compared from its beginning: write */ns/NAMESPACE/sa/ACCOUNT, or the principals that are meant", text)
			return nil
		}
		var out []string
		for _, domain := range c.domains {
			if strings.HasSuffix(domain, end[:i]) {
				out = append(out, scheme+domain+end[i:])
			}
		}
		if len(c.domains) > 1 || end[:i] != "" {
			at.Note("%q is written out for the trust domains %q", text, c.domains)
		}
		return out
	}
	if strings.Contains(strings.TrimSuffix(text, "*"), "*") {
		at.Error("%q: '*' stands at the beginning or at the end", text)
		return nil
	}
	domain, rest, ok := strings.Cut(text, "/")
	if !ok {
		return []string{scheme + text}
	}
	if domain != "cluster.local" && !slices.Contains(c.domains, domain) {
		return []string{scheme + text}
	}
	var out []string
	for _, d := range c.domains {
		out = append(out, scheme+d+"/"+rest)
	}
	return out
}

// namespace is whoever proves to be of the namespace, of any trust domain.
func (c *converter) namespace(at manifest.At, text string) []string {
	name, prefix := strings.CutSuffix(text, "*")
	switch {
	case text == "*":
		return []string{scheme + "*"}
	case name == "" || strings.ContainsAny(name, "*/"):
		at.Error("%q: a SPIFFE ID is compared from its beginning, so a namespace may end with '*' only: name the namespaces", text)
		return nil
	}
	end := "/*"
	if prefix {
		end = "*"
	}
	var out []string
	for _, d := range c.domains {
		out = append(out, scheme+d+"/ns/"+name+end)
	}
	return out
}

// serviceAccount is NAME of the policy's namespace, or NAMESPACE/NAME.
func (c *converter) serviceAccount(at manifest.At, namespace, text string) []string {
	name := text
	if ns, rest, ok := strings.Cut(text, "/"); ok {
		namespace, name = ns, rest
	}
	if namespace == "" || name == "" || strings.ContainsAny(namespace+name, "*/") {
		at.Error("%q is neither ACCOUNT nor NAMESPACE/ACCOUNT", text)
		return nil
	}
	var out []string
	for _, d := range c.domains {
		out = append(out, scheme+d+"/ns/"+namespace+"/sa/"+name)
	}
	return out
}

// addresses converts the connection's own address. What is negated are the
// addresses that remain.
func addresses(at manifest.At, field, notField string, list, not []string, out *clause) {
	if len(list)+len(not) == 0 {
		return
	}
	read := func(at manifest.At, list []string) []netip.Prefix {
		var prefixes []netip.Prefix
		for i, text := range list {
			p, err := manifest.Prefix(text)
			if err != nil {
				at.In("[%d]", i).Error("%s", err)
				continue
			}
			if !slices.Contains(prefixes, p) {
				prefixes = append(prefixes, p)
			}
		}
		return prefixes
	}
	nets := manifest.Everywhere()
	if len(list) > 0 {
		nets = read(at.In("%s", field), list)
	}
	networks, err := manifest.Less(nets, read(at.In("%s", notField), not))
	if err != nil {
		at.In("%s", notField).Error("%s", err)
		return
	}
	both, ok := both(out.yes, conditions{networks: append([]v1alpha1.Network{}, networks...)})
	if !ok {
		at.In("%s", notField).Error("together with the others it has too many exceptions: split the rule")
		return
	}
	out.yes = both
}
